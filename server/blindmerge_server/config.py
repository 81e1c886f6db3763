"""The coordinator's folder: keys, certificates, owners, and the settings that a person writes.

identity     seed of the Ed25519 key that signs plans           0600
control      secret without which nobody can start a run        0600
tls/         ca.crt (for owners), server.crt, server.key        0600
             ca.key, which only `server renew` needs            0600
server.toml  where the server listens
owners/      one public-keys.json per owner
roster       canonical bytes of the owners' identities; owners pin its hash
plans/       signed plans, for owners to read beforehand
jobs/        one folder per job
"""

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from blindmerge.encoding import Bits
from blindmerge.errors import ConfigInvalid, PeerInvalid
from blindmerge.files import replacing, save_private
from blindmerge.identity import Identity, Member, Roster
from blindmerge.merge import AnyMethod
from blindmerge.mistakes import shown
from blindmerge.plan import check_width
from blindmerge.secagg.manifest import LEAST_OWNERS
from blindmerge.secagg.secret import Secret
from blindmerge.settings import check_model, check_private, read_settings, refusal
from blindmerge_server.certificates import Credentials, renewed, trouble
from blindmerge_server.noise_settings import NoiseSettings

__all__ = ["Home", "JobSettings", "OwnerKeys", "ServerSettings"]

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")
_SEED_BYTES = 32
_KEYS_BYTES = 1 << 16
_SERVER_HINT = "the comments that `blindmerge server init` wrote into the file explain every key"
_JOB_HINT = "the comments in job.toml, which `blindmerge server init` wrote, explain every key"


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{shown(value)} is not a path in quotes")
    return Path(info.context["folder"] / value) if info.context else Path(value)


def _job_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", value):
        raise ValueError(
            f"{shown(value)} is not a name; use 1 to 64 of a-z, 0-9 and '-', starting with a "
            "letter or digit"
        )
    return value


class ServerSettings(BaseModel):
    """`server.toml`: where the server listens."""

    model_config = _STRICT
    name: str = Field(description="the coordinator's name, as owners pin it")
    listen: str = Field(default="0.0.0.0", description="the address to listen on")  # noqa: S104
    port: Annotated[int, Field(ge=1, le=65535)] = Field(default=9092, description="TCP port")
    connect: str = Field(
        default="127.0.0.1",
        description="where `server merge` finds the server; one of the certificate's hosts",
    )


class JobSettings(BaseModel):
    """A job's TOML file: what is merged, and how."""

    model_config = _STRICT
    name: Annotated[str, AfterValidator(_job_name)] = Field(
        description="the job's id, never reused"
    )
    base: Annotated[Path, PlainValidator(_path)] = Field(
        description="the folder of the model that everybody started from"
    )
    method: AnyMethod = Field(description='how to merge, e.g. { name = "regmean" }')
    heads: Literal["shared", "kept"] = Field(
        default="shared",
        description='"kept": only what is below the heads is merged; owners may differ in labels',
    )
    examples: Annotated[int, Field(ge=1)] = Field(
        default=1000, description="so many of an owner's examples enter its statistics at most"
    )
    max_length: Annotated[int, Field(ge=1)] = Field(
        default=128, description="tokens after which a text is cut"
    )
    colluders: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="so many owners may be in league with the server"
    )
    bits: Bits = Field(default=64, description="64, or 48 or 32 for smaller uploads")
    noise: NoiseSettings | None = Field(
        default=None, description="a [noise] table: noise with a proof, none without it"
    )
    days: Annotated[int, Field(ge=1, le=365)] = Field(
        default=7, description="after so many days no owner joins any more"
    )
    patience_hours: Annotated[float, Field(gt=0, le=8760, allow_inf_nan=False)] = Field(
        default=12.0, description="an owner that is silent for so long is out"
    )

    @model_validator(mode="after")
    def _width_fits(self) -> Self:
        check_width(self.bits, self.method, LEAST_OWNERS)  # how many there are, the plan tells
        return self

    @classmethod
    def read(cls, file: Path) -> Self:
        """The file.   Raises ConfigInvalid with all its mistakes."""
        settings = read_settings(cls, file, "a job's TOML file", _JOB_HINT)
        try:
            check_model(settings.base)
        except ValueError as error:
            raise refusal(file, [f"base: {error}"], _JOB_HINT) from error
        return settings


class OwnerKeys(BaseModel):
    """`public-keys.json` of an owner, as `blindmerge client init` wrote it."""

    model_config = _STRICT
    name: str
    identity: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    node: str

    @classmethod
    def read(cls, file: Path) -> "OwnerKeys":
        """Raises ConfigInvalid for a file that is not an owner's public keys."""
        try:
            with file.open("rb") as stream:
                keys = cls.model_validate_json(stream.read(_KEYS_BYTES))
            Roster.of([keys.member])
            keys.node_key()
        except OSError as error:
            raise ConfigInvalid(f"{file}: cannot be read: {error.strerror}") from error
        except (ValidationError, PeerInvalid, ValueError, UnsupportedAlgorithm) as error:
            raise ConfigInvalid(
                f"{file}: is not the public-keys.json of an owner",
                hint="ask the owner for the file that `blindmerge client init` wrote",
            ) from error
        return keys

    @property
    def member(self) -> Member:
        """Its place in the roster."""
        return Member(self.name, bytes.fromhex(self.identity))

    def node_key(self) -> EllipticCurvePublicKey:
        """The key with which its node enters.   Raises ValueError unless it is on P-384."""
        key = load_ssh_public_key(self.node.encode())
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise ValueError("the node's key is not on the curve P-384")
        return key


class Home:
    """The coordinator's folder and what has its place in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.settings_file = self.folder / "server.toml"
        self.job_template = self.folder / "job.toml"
        self.identity_file = self.folder / "identity"
        self.control_file = self.folder / "control"
        self.authority_file = self.folder / "tls" / "ca.crt"
        self.authority_key_file = self.folder / "tls" / "ca.key"
        self.certificate_file = self.folder / "tls" / "server.crt"
        self.key_file = self.folder / "tls" / "server.key"
        self.roster_file = self.folder / "roster"
        self.owners_folder = self.folder / "owners"
        self.plans = self.folder / "plans"
        self.jobs = self.folder / "jobs"
        self.layouts = self.folder / "layouts"
        self.database = self.folder / "flower.db"
        self.log_file = self.folder / "server.log"
        self.merge_lock_file = self.folder / "merge.lock"

    def settings(self) -> ServerSettings:
        """`server.toml`.   Raises ConfigInvalid with all its mistakes."""
        if not self.settings_file.exists():
            raise ConfigInvalid(
                f"'{self.folder}' is not a coordinator's folder",
                hint=f"make one: blindmerge server init {self.folder}",
            )
        return read_settings(ServerSettings, self.settings_file, "a server.toml", _SERVER_HINT)

    def identity(self) -> Identity:
        """The key that signs plans.   Raises ConfigInvalid if it is missing or damaged."""
        return Identity(self.settings().name, self._secret(self.identity_file))

    def control(self) -> Secret:
        """What proves to the server that a command is the coordinator's.   Raises likewise."""
        return self._secret(self.control_file)

    def renew(self, hosts: Sequence[str], now: datetime.datetime) -> None:
        """Puts a new certificate of the server in the old one's place (see `renewed`).

        Raises ConfigInvalid if a file is missing or damaged, or the authority ends.
        """
        files = (
            self.authority_file,
            self.authority_key_file,
            self.certificate_file,
            self.key_file,
        )
        check_private(self.authority_key_file)
        old = Credentials(*(self._read(file) for file in files))
        save_private(self.certificate_file, renewed(old, hosts, now))

    def trouble(self, now: datetime.datetime) -> str:
        """What is wrong with the certificate, or soon will be, and what to do; empty if nothing."""
        wrong = trouble(self._read(self.certificate_file), now)
        return wrong and f"{wrong}\n  renew it: blindmerge server renew {self.folder}"

    def owners(self) -> tuple[OwnerKeys, ...]:
        """All owners, sorted by name.   Raises ConfigInvalid if a file is damaged."""
        return tuple(OwnerKeys.read(file) for file in sorted(self.owners_folder.glob("*.json")))

    def roster(self) -> Roster:
        """The roster of all owners.   Raises ConfigInvalid if there is no owner yet."""
        owners = self.owners()
        if not owners:
            raise ConfigInvalid(
                "there are no owners yet",
                hint=f"add each: blindmerge server add-owner {self.folder} public-keys.json",
            )
        return Roster.of([owner.member for owner in owners])

    def add(self, keys: OwnerKeys) -> Roster:
        """The roster with one more owner; written, and readable for everybody.

        Raises ConfigInvalid if the name or one of the keys is there already.
        """
        for known in self.owners():
            if known == keys:
                break
            if known.name == keys.name:
                raise ConfigInvalid(
                    f"'{keys.name}' is in the roster with other keys",
                    hint=f"first: blindmerge server remove-owner {self.folder} {keys.name}; the "
                    "roster's hash changes, and all owners must pin the new one",
                )
            if known.identity == keys.identity or known.node_key() == keys.node_key():
                raise ConfigInvalid(
                    f"'{keys.name}' has a key of '{known.name}'", hint="each owner has its own keys"
                )
        with replacing(self.owners_folder / f"{keys.name}.json") as temporary:
            temporary.write_text(keys.model_dump_json(indent=2) + "\n", encoding="utf-8")
        roster = self.roster()
        with replacing(self.roster_file) as temporary:
            temporary.write_bytes(roster.encode())
        return roster

    def remove(self, name: str) -> int:
        """Takes an owner off the roster; returns how many are left.

        Raises ConfigInvalid if there is no such owner.
        """
        if name not in {owner.name for owner in self.owners()}:
            raise ConfigInvalid(
                f"no owner is called {shown(name)}",
                hint=f"blindmerge server roster {self.folder} names them all",
            )
        (self.owners_folder / f"{name}.json").unlink()
        left = self.owners()
        self.roster_file.unlink(missing_ok=True)
        if left:
            with replacing(self.roster_file) as temporary:
                temporary.write_bytes(self.roster().encode())
        return len(left)

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(_KEYS_BYTES)
        except OSError as error:
            raise ConfigInvalid(
                f"{path}: cannot be read: {error.strerror}",
                hint="restore it, or run as the user who ran `blindmerge server init`",
            ) from error

    def _secret(self, path: Path) -> Secret:
        check_private(path)
        seed = self._read(path)
        if len(seed) != _SEED_BYTES:
            raise ConfigInvalid(
                f"{path}: is not {_SEED_BYTES} bytes", hint="restore it from a backup"
            )
        return Secret(seed)
