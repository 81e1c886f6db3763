"""TOML files that a person writes: read with a bound, every mistake told at once."""

import os
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from blindmerge import canonical
from blindmerge.checkpoint import ADAPTER_CONFIG
from blindmerge.errors import ConfigInvalid
from blindmerge.mistakes import Tables, explain

__all__ = [
    "check_file",
    "check_model",
    "check_private",
    "read_settings",
    "read_toml",
    "refusal",
]

_FILE_BYTES = 1 << 20  # such a file is a page, not a data set


_Model = TypeVar("_Model", bound=BaseModel)


def read_settings(
    kind: type[_Model], path: Path, what: str, hint: str, tables: Tables | None = None
) -> _Model:
    """The file as a model; validators find its folder, an absolute `Path`, in their context.

    what: "a policy", for messages.   tables: models of the tables inside, by key.
    Raises ConfigInvalid with all mistakes of the file.
    """
    raw = read_toml(path, what, hint)
    folder = Path(os.path.abspath(path)).parent
    try:
        return kind.model_validate(canonical.tuples(raw), context={"folder": folder})
    except ValidationError as error:
        known: Tables = {"": kind, **(tables or {})}
        details = error.errors(include_url=False)
        raise refusal(path, [explain(each, raw, known) for each in details], hint) from error


def read_toml(path: Path, what: str, hint: str) -> dict[str, object]:
    """The file as parsed.   what: "a federation file", for messages.

    Raises ConfigInvalid, with `hint` if the text is not TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
    except OSError as error:
        where = f"give the path of {what}"
        raise ConfigInvalid(f"{path}: cannot be read: {error.strerror}", hint=where) from error
    if len(data) > _FILE_BYTES:
        raise ConfigInvalid(f"{path}: is larger than 1 MiB, so it is not {what}")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigInvalid(f"{path}: line {line}: is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{path}: {_syntax(str(error))}", hint=hint) from error


def refusal(path: Path, mistakes: Sequence[str], hint: str) -> ConfigInvalid:
    """The error that lists all mistakes of a file, one per line."""
    if len(mistakes) == 1:
        return ConfigInvalid(f"{path}: {mistakes[0]}", hint=hint)
    lines = "\n".join(f"  {mistake}" for mistake in mistakes)
    return ConfigInvalid(f"{path} has {len(mistakes)} mistakes:\n{lines}", hint=hint)


def check_file(path: Path) -> None:
    """Raises ValueError unless this is a file that can be read."""
    if not stat.S_ISREG(_mode(path)):
        raise ValueError(f"{path} is not a file; give a file of examples")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def check_model(path: Path) -> None:
    """Raises ValueError unless this is the folder of a checkpoint, or of an adapter for one."""
    if not stat.S_ISDIR(_mode(path)):
        raise ValueError(f"{path} is not a folder; give the folder of a transformers checkpoint")
    if not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise ValueError(f"{path} has no config.json; give the folder of a transformers checkpoint")


def check_private(path: Path) -> None:
    """Raises ConfigInvalid if others than its user and group can read or change a file.

    A group may: containers get their secrets so. A file that is not there is nobody's secret.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & stat.S_IRWXO:
        raise ConfigInvalid(f"{path}: others can read or change it", hint=f"chmod 600 '{path}'")


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the name is not allowed"
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _syntax(message: str) -> str:
    """`line 3, column 5: ...` from tomllib's `... (at line 3, column 5)`."""
    found = re.fullmatch(r"(.*) \(at (.*)\)", message, flags=re.DOTALL)
    text, where = found.groups() if found else (message, "")
    return f"{where + ': ' if where else ''}not TOML: {text[:1].lower()}{text[1:]}"
