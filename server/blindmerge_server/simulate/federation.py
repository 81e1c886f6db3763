"""The federation file of `blindmerge simulate`: one job, and several owners on one machine.

The file is TOML. Paths are relative to it; `embedded:` starts a path in the folder of models
and texts that blindmerge makes from packages of PyPI (see `embedded.toml` beside this file).
Every mistake of a file is found before any work begins, and all are told at once.
"""

import os
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from blindmerge import canonical
from blindmerge.encoding import Bits
from blindmerge.merge import AnyMethod
from blindmerge.mistakes import Tables, explain, listed, owner_key, owner_names, shown
from blindmerge.plan import check_width
from blindmerge.settings import check_file, check_model, read_toml, refusal
from blindmerge.tasks import Task, check_labels
from blindmerge_client.data import SUFFIXES
from blindmerge_client.options import LoraOptions, TrainingOptions
from blindmerge_server.noise_settings import NoiseSettings

__all__ = [
    "Federation",
    "Job",
    "Owner",
    "default_federation",
    "read_federation",
]

EMBEDDED = "embedded:"

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")
_HINT = "examples/own-data.toml in the source explains every key"
_ID = "lower-case letters, digits and hyphens"


def _name(limit: int, what: str) -> AfterValidator:
    """A validator of names with at most `limit` characters."""

    def check(name: str) -> str:
        if not re.fullmatch(rf"[a-z0-9][a-z0-9-]{{0,{limit - 1}}}", name):
            raise ValueError(f"{shown(name)} is not {what}; use {_ID}, at most {limit}")
        return name

    return AfterValidator(check)


def _by_name(method: object) -> object:
    """A method that is given by name alone has its default options."""
    return {"name": method} if isinstance(method, str) else method


def _tables(owners: object) -> object:
    if isinstance(owners, Mapping):
        raise ValueError("write [[owner]] with two brackets, one such table per organisation")
    return owners


def _labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    for label in labels:
        if not label.strip():
            raise ValueError("an empty label is not allowed; give every label a name")
        if labels.count(label) > 1:
            raise ValueError(f"{shown(label)} occurs twice; every label needs its own name")
    return labels


def _data_file(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not path.name.lower().endswith(tuple(SUFFIXES)):
        raise ValueError(f"{shown(path.name)} has no known suffix; use {listed(tuple(SUFFIXES))}")
    if path.is_absolute():
        check_file(path)
    return path


def _model_folder(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if path.is_absolute():
        check_model(path)
    return path


def _path(value: object, info: ValidationInfo) -> Path:
    """An absolute path, or a relative one that begins with `embedded:`."""
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text:
        raise ValueError(f"{shown(value)} is not a path in quotes")
    if text.startswith(EMBEDDED):
        inside = PurePosixPath(text.removeprefix(EMBEDDED))
        if inside.is_absolute() or ".." in inside.parts or not inside.parts or "\\" in text:
            raise ValueError(f"{shown(text)} leaves the embedded folder; name something in it")
        return Path(f"{EMBEDDED}{inside}")
    folder = info.context["folder"] if info.context else Path()
    return Path(os.path.abspath(folder / text))


DataFile: TypeAlias = Annotated[Path, PlainValidator(_data_file)]
ModelFolder: TypeAlias = Annotated[Path, PlainValidator(_model_folder)]
Method: TypeAlias = Annotated[AnyMethod, BeforeValidator(_by_name)]


class Job(BaseModel):
    """`[job]`: what is merged, and how."""

    model_config = _STRICT
    name: Annotated[
        str,
        _name(64, "a job name"),
        Field(description=f"a name for the job: {_ID}, at most 64"),
    ]
    base: ModelFolder = Field(
        description="the folder of the checkpoint that every owner starts from"
    )
    task: Task = Field(
        default="single-label",
        description='"single-label", "multi-label", "regression" (a number for every text), '
        '"token-classification", "causal-lm" or "seq2seq"',
    )
    labels: Annotated[tuple[str, ...], AfterValidator(_labels)] = Field(
        default=(),
        description='the label names, e.g. ["negative", "positive"]; none for a language model',
    )
    masks: Literal["on", "off"] = Field(
        default="on",
        description='"off" shows the server every owner\'s statistics; every owner must allow it',
    )
    colluders: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="so many owners may help the server; leave out for a third of them, at least 1",
    )
    bits: Bits = Field(
        default=64,
        description="width of the numbers under masks: 64, or 48 or 32 for a quarter or half less "
        "to send",
    )
    examples: Annotated[int, Field(ge=1)] = Field(
        default=1000,
        description="at most so many training examples enter an owner's statistics",
    )
    method: Method = Field(description='how to merge, e.g. { name = "regmean", ridge = 0.1 }')
    adapter_rank: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="write the merged model as a LoRA adapter of this rank too; leave out for none",
    )
    compare: tuple[Method, ...] = Field(
        default=(), description='further methods to show, e.g. ["average", "fisher"]'
    )

    @property
    def methods(self) -> dict[str, AnyMethod]:
        """The method and then those to compare it with, each under its own id.

        The id is the method's name; a second one of the same name gets `-2`, and so on.
        A method that stands there twice with the same options is there once.
        """
        found: dict[str, AnyMethod] = {}
        for method in (self.method, *self.compare):
            if method in found.values():
                continue
            same = sum(method.name == other.name for other in found.values())
            found[f"{method.name}-{same + 1}" if same else method.name] = method
        return found


class Owner(BaseModel):
    """`[[owner]]`: an organisation with its own labelled texts.

    checkpoint: a model that was fine-tuned from the base already; None fine-tunes one.
    labels: the owner's own; None if they are the job's.
    """

    model_config = _STRICT
    name: Annotated[
        str,
        _name(32, "an owner's name"),
        Field(description=f"a name for the owner: {_ID}, at most 32"),
    ]
    train: DataFile = Field(description="a file of labelled texts to train on")
    validation: DataFile = Field(description="a file of labelled texts to choose with")
    test: DataFile = Field(description="a file of labelled texts that nothing else uses")
    checkpoint: Annotated[Path | None, PlainValidator(_model_folder)] = Field(
        default=None, description="the folder of a model fine-tuned from the base"
    )
    labels: Annotated[tuple[str, ...], AfterValidator(_labels)] | None = Field(
        default=None, description="the owner's own label names, if they are not the job's"
    )
    allow_masks_off: bool = Field(
        default=False, description="whether the server may see this owner's statistics"
    )


class Federation(BaseModel):
    """A federation file.

    Paths are absolute, or relative and begin with `embedded:`; after `resolve` all are absolute.
    """

    model_config = _STRICT
    job: Job = Field(description="a [job] table")
    training: TrainingOptions = Field(
        default_factory=TrainingOptions, description="how owners fine-tune"
    )
    noise: NoiseSettings | None = Field(
        default=None, description="noise with a proof, or none if the table is left out"
    )
    owners: Annotated[tuple[Owner, ...], BeforeValidator(_tables)] = Field(
        alias="owner", description="at least two [[owner]] tables"
    )
    _file: Path = PrivateAttr(default=Path("the federation"))

    @model_validator(mode="after")
    def _width_fits(self) -> Self:
        if self.job.masks == "on":
            for method in self.job.methods.values():
                check_width(self.job.bits, method, len(self.owners))
        return self

    def labels_of(self, owner: Owner) -> tuple[str, ...]:
        """The labels of an owner's data and head."""
        return self.job.labels if owner.labels is None else owner.labels

    @property
    def heads_kept(self) -> bool:
        """Whether owners keep their heads, since their labels differ."""
        return any(self.labels_of(owner) != self.job.labels for owner in self.owners)

    @property
    def needs_embedded(self) -> bool:
        """Whether a path lies in the embedded folder, which then has to be there."""
        return any(not path.is_absolute() for _, path in self._paths())

    def resolve(self, embedded: Path) -> "Federation":
        """The same federation with `embedded:` replaced by the folder `embedded`.

        Raises ConfigInvalid with every path that leads nowhere.
        """
        folder = Path(os.path.abspath(embedded))
        mistakes = []
        for key, path in self._paths():
            check = check_model if key.endswith((".base", ".checkpoint")) else check_file
            try:
                check(_inside(folder, path))
            except ValueError as error:
                mistakes.append(f"{key}: {error}")
        if mistakes:
            raise refusal(self._file, mistakes, _HINT)
        owners = tuple(
            owner.model_copy(
                update={
                    part: _inside(folder, path)
                    for part in _OWNER_PATHS
                    if (path := getattr(owner, part)) is not None
                }
            )
            for owner in self.owners
        )
        job = self.job.model_copy(update={"base": _inside(folder, self.job.base)})
        return self.model_copy(update={"job": job, "owners": owners})

    def _paths(self) -> Iterator[tuple[str, Path]]:
        yield "job.base", self.job.base
        for owner in self.owners:
            for part in _OWNER_PATHS:
                path = getattr(owner, part)
                if path is not None:
                    yield f"owner.{owner.name}.{part}", path


_OWNER_PATHS = ("train", "validation", "test", "checkpoint")
_TABLES: Tables = {
    "": Federation,
    "job": Job,
    "noise": NoiseSettings,
    "owner": Owner,
    "training": TrainingOptions,
    "training.lora": LoraOptions,
}


def default_federation() -> Path:
    """The file of the embedded federation, which needs nothing from the user."""
    return Path(str(resources.files("blindmerge_server.simulate") / "embedded.toml"))


def read_federation(path: Path) -> Federation:
    """The federation that the file describes, with every path outside `embedded:` checked.

    Raises ConfigInvalid with all mistakes of the file, one per line.
    """
    raw = read_toml(path, "a federation file", _HINT)
    folder = Path(os.path.abspath(path)).parent
    clashes = _clashes(raw)
    try:
        federation = Federation.model_validate(canonical.tuples(raw), context={"folder": folder})
    except ValidationError as error:
        details = error.errors(include_url=False)
        mistakes = [explain(each, raw, _TABLES) for each in details]
        raise refusal(path, [*mistakes, *clashes], _HINT) from error
    if clashes:
        raise refusal(path, clashes, _HINT)
    federation._file = path
    return federation


def _clashes(raw: Mapping[str, object]) -> list[str]:
    """Mistakes between values that are right alone: too few owners, or one thing twice."""
    owners = raw.get("owner")
    if not isinstance(owners, list):
        return []
    mistakes = []
    if len(owners) < 2:
        mistakes.append(f"owner: {len(owners)} is too few; a simulation takes at least 2 owners")
    job = raw.get("job")
    task = job.get("task", "single-label") if isinstance(job, dict) else None
    mistakes += _mistaken_labels(task, job, "job")
    mistakes += _mistaken_masks(raw.get("job"), owners)
    names = owner_names(owners)
    twice = [name for name in dict.fromkeys(map(str, names)) if names.count(name) > 1]
    mistakes += [f'owner: the name "{name}" occurs twice; names must differ' for name in twice]
    for index, owner in enumerate(owners):
        if isinstance(owner, dict):
            key = owner_key(owners, index)
            mistakes += [f"{key}.{mistake}" for mistake in _shared_files(owner)]
            mistakes += _mistaken_labels(task, owner, key)
    return mistakes


def _mistaken_labels(task: Any, table: object, key: str) -> Iterator[str]:
    if not isinstance(table, dict):
        return
    # Without a list of its own an owner has the job's.
    labels = table.get("labels", [] if key == "job" else None)
    # What is wrong with one of them alone is told already.
    if task in get_args(Task) and isinstance(labels, list) and len(set(labels)) == len(labels):
        try:
            check_labels(task, [str(label) for label in labels])
        except ValueError as error:
            yield f"{key}.labels: {error}"


def _mistaken_masks(job: object, owners: list[object]) -> Iterator[str]:
    if not isinstance(job, dict):
        return
    if job.get("masks", "on") == "off":
        for index, owner in enumerate(owners):
            if isinstance(owner, dict) and owner.get("allow_masks_off") is not True:
                yield (
                    f"{owner_key(owners, index)}.allow_masks_off: is not true, but the job has "
                    'masks = "off"; every owner must allow it'
                )
    elif len(owners) == 2:
        yield (
            "owner: 2 are too few for masks, since each would learn the other's numbers from the "
            'sum; use at least 3 owners, or masks = "off"'
        )
    elif isinstance(job.get("colluders"), int) and job["colluders"] > len(owners) - 2:
        yield f"job.colluders: {job['colluders']} of {len(owners)} owners leave no two honest ones"


def _shared_files(owner: Mapping[str, object]) -> Iterator[str]:
    """Test texts that the model was trained or chosen on would make every score too good."""
    parts = ("train", "validation", "test")
    for index, part in enumerate(parts):
        for other in parts[:index]:
            if isinstance(owner.get(part), str) and owner.get(part) == owner.get(other):
                yield f"{part}: is the same file as {other}; use different texts"


def _inside(embedded: Path, path: Path) -> Path:
    return path if path.is_absolute() else embedded / str(path).removeprefix(EMBEDDED)
