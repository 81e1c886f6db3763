"""The owner's two files: `client.toml`, where things are, and `policy.toml`, what is allowed.

Both lie in the owner's folder with its keys. Paths in them are relative to that folder.
A key that is missing from the policy allows nothing.
"""

import datetime
import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo

from blindmerge.errors import ConfigInvalid
from blindmerge.identity import Identity, Member, Roster, verify_roster
from blindmerge.merge import METHODS
from blindmerge.mistakes import listed, shown
from blindmerge.secagg.manifest import LEAST_OWNERS
from blindmerge.secagg.secret import Secret
from blindmerge.settings import check_file, check_model, check_private, read_settings, refusal
from blindmerge_client.ledger import Book, Ledger

__all__ = ["Client", "Home", "Policy", "organisation"]

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HINT = "the comments that `blindmerge client init` wrote into the file explain every key"
_SEED_BYTES = 32
_ROSTER_BYTES = 1 << 24


def organisation(name: str) -> str:
    """The name of an organisation, as rosters take it.   Raises ValueError for another."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{shown(name)} is not a name; use 1 to 64 of a-z, 0-9, '.', '_' and '-', starting "
            "with a letter or digit"
        )
    return name


def _path(value: object, info: ValidationInfo) -> Path:
    text = str(value) if isinstance(value, Path) else value  # a default
    if not isinstance(text, str) or not text:
        raise ValueError(f"{shown(value)} is not a path in quotes")
    folder = info.context["folder"] if info.context else Path()
    return Path(folder / text)


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not host or not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'{shown(value)} is not an address; write it as "fl.example.org:9092"')
    return value


def _hex32(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{shown(value)} is not 64 hex digits, in lower case")
    return value


def _keys(coordinators: dict[str, str]) -> dict[str, str]:
    for name, key in coordinators.items():
        try:
            organisation(name)
            _hex32(key)
        except ValueError as error:
            raise ValueError(f"of {shown(name)}: {error}") from error
    return coordinators


def _method(value: str) -> str:
    if value not in METHODS:
        raise ValueError(f"{shown(value)} is not a method; known: {', '.join(sorted(METHODS))}")
    return value


def _with_masks(required: tuple[str, ...]) -> tuple[str, ...]:
    if "masks" not in required:
        raise ValueError('"masks" is missing; without masks the server sees your own statistics')
    return required


Requirement: TypeAlias = Literal["masks", "noise", "end-to-end"]
FilePath: TypeAlias = Annotated[Path, PlainValidator(_path)]
Hex32: TypeAlias = Annotated[str, AfterValidator(_hex32)]


class Client(BaseModel):
    """`client.toml`: who this is and where its data and models are."""

    model_config = _STRICT
    name: Annotated[str, AfterValidator(organisation)] = Field(
        description="the organisation's name, as it stands in the roster"
    )
    base: FilePath = Field(description="the folder of the model that everybody started from")
    model: FilePath = Field(description="the folder of your own fine-tuned model")
    train: FilePath = Field(description="the file of examples that statistics are made from")
    validation: FilePath = Field(
        description="the file of examples on which you compare the merged model with your own"
    )
    test: FilePath | None = Field(
        default=None, description="a file of examples; its scores are told to the coordinator"
    )
    server: Annotated[str, AfterValidator(_address)] = Field(
        description='the address of the coordinator\'s server, e.g. "fl.example.org:9092"'
    )
    ca: FilePath = Field(
        default=Path("ca.crt"),
        validate_default=True,
        description="the certificate authority of the server, from the coordinator",
    )
    socket: FilePath = Field(
        default=Path("gateway.sock"),
        validate_default=True,
        description="where the gateway listens; nobody else may write to its folder",
    )
    socket_group: str | None = Field(
        default=None,
        min_length=1,
        description="a Unix group that may use the socket, for a node that is another user",
    )

    def check(self, file: Path) -> None:
        """Raises ConfigInvalid, with every mistake, unless data and models are there."""
        mistakes = []
        for key in ("base", "model", "train", "validation", "test"):
            path, check = getattr(self, key), check_model if key in _MODELS else check_file
            try:
                if path is not None:
                    check(path)
            except ValueError as error:
                mistakes.append(f"{key}: {error}")
        if self.test is not None and self.test in (self.train, self.validation):
            mistakes.append("test: is the same file as another; use different examples")
        if mistakes:
            raise refusal(file, mistakes, _HINT)


_MODELS = ("base", "model")


class Policy(BaseModel):
    """`policy.toml`: what this organisation allows. An empty one allows nothing."""

    model_config = _STRICT
    roster: Hex32 | None = Field(
        default=None, description="the SHA-256 of the roster, as you compared it with the others"
    )
    coordinators: Annotated[dict[str, str], AfterValidator(_keys)] = Field(
        default_factory=dict, description="names and Ed25519 public keys of coordinators"
    )
    base_models: tuple[Hex32, ...] = Field(
        default=(), description="content hashes of base models (`blindmerge inspect MODEL`)"
    )
    methods: tuple[Annotated[str, AfterValidator(_method)], ...] = Field(
        default=(), description=f"of {listed(sorted(METHODS))}"
    )
    layers: tuple[str, ...] = Field(
        default=(), description='layers whose Gram matrices may be summed, e.g. ["*.layer.*"]'
    )
    embeddings: Literal["average", "any"] = Field(
        default="average", description='"average", or "any" to allow statistics of words'
    )
    least_owners: Annotated[int, Field(ge=LEAST_OWNERS)] = Field(
        default=5, description=f"in every sum, at least {LEAST_OWNERS}"
    )
    colluders: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="so many others may be in league with the server; a third of the roster if "
        "nothing else is said, a tenth above 100",
    )
    least_examples: Annotated[int, Field(ge=1)] = Field(
        default=100, description="with fewer examples of yours nothing is sent"
    )
    rows_factor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=4.0, description="rows per width of a layer below which it is averaged"
    )
    require: Annotated[tuple[Requirement, ...], AfterValidator(_with_masks)] = Field(
        default=("masks",),
        description='["masks"]: the server sees sums only; "noise": statistics have noise; '
        '"end-to-end": the training as well',
    )
    max_epsilon: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = Field(
        default=0.0, description="what all jobs on the same examples may cost together, at `delta`"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-6, description="of every epsilon here, far below 1 / examples"
    )
    least_noise: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = Field(
        default=0.5, description="noise of statistics per clip; with less nothing is sent"
    )
    max_jobs: Annotated[int, Field(ge=0)] = Field(
        default=1, description="jobs that the same training data may be used for"
    )
    max_attempts: Annotated[int, Field(ge=1)] = Field(
        default=3, description="how often one sum may be tried"
    )
    expires: datetime.date | None = Field(
        default=None, description="the last day of this policy (UTC), e.g. 2027-01-31"
    )
    approve: Literal["ask", "automatic"] = Field(
        default="ask", description='"ask" a person about every job, or "automatic"'
    )

    @property
    def members(self) -> tuple[Member, ...]:
        """The pinned coordinators."""
        return tuple(Member(name, bytes.fromhex(key)) for name, key in self.coordinators.items())


class Home:
    """The owner's folder and what has its place in it."""

    def __init__(self, folder: Path) -> None:
        # Absolute: children of this process may work elsewhere.
        self.folder = folder.absolute()
        self.client_file = self.folder / "client.toml"
        self.policy_file = self.folder / "policy.toml"
        self.identity_file = self.folder / "identity"
        self.node_file = self.folder / "node"
        self.roster_file = self.folder / "roster"
        self.public_keys_file = self.folder / "public-keys.json"
        self.jobs = self.folder / "jobs"
        self.ledgers = self.folder / "ledgers"
        self.log_file = self.folder / "log" / "client.log"
        # Beside the log: where the node is a user of its own, it writes nowhere else.
        self.node_number_file = self.log_file.with_name("node-number")
        self.gateway_log_file = self.folder / "log" / "gateway.log"

    def client(self) -> Client:
        """`client.toml`.   Raises ConfigInvalid with all its mistakes."""
        return read_settings(Client, self.client_file, "an owner's client.toml", _HINT)

    def policy(self) -> Policy:
        """`policy.toml`, as it is now.   Raises ConfigInvalid with all its mistakes."""
        return read_settings(Policy, self.policy_file, "an owner's policy.toml", _HINT)

    def ledger(self, dataset: str) -> Ledger:
        """The ledger of these examples.   dataset: what it calls them, a hash."""
        return Ledger(self.ledgers / dataset)

    def book(self, dataset: str) -> Book | None:
        """What is in that ledger; None if nobody opened one.   Raises LedgerTampered."""
        folder = self.ledgers / dataset
        return Ledger(folder).read(dataset) if folder.exists() else None

    def identity(self, name: str) -> Identity:
        """The signing key.   Raises ConfigInvalid if it is missing or damaged."""
        check_private(self.identity_file)
        seed = self._read(self.identity_file, _SEED_BYTES, "run `blindmerge client init` first")
        if len(seed) != _SEED_BYTES:
            raise ConfigInvalid(
                f"{self.identity_file}: is not {_SEED_BYTES} bytes", hint="restore it from a backup"
            )
        return Identity(name, Secret(seed))

    def roster(self, pinned: str) -> Roster:
        """The roster, which must be the pinned one.   pinned: its SHA-256 in hex.

        Raises ConfigInvalid if there is none, PeerInvalid if it is another.
        """
        data = self._read(self.roster_file, _ROSTER_BYTES, "get it from the coordinator")
        roster = Roster.decode(data)
        verify_roster(roster, bytes.fromhex(pinned))
        return roster

    def _read(self, path: Path, largest: int, hint: str) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(largest + 1)
        except OSError as error:
            raise ConfigInvalid(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
