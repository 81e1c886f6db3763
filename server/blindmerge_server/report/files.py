"""Files of a report, written whole or not at all."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from blindmerge.errors import ResourceMissing

__all__ = ["write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside `path`, then renames, so that no reader ever sees half a file.

    Raises ResourceMissing if the disk is full or the folder cannot be written; then `path`
    is as it was before.
    """
    try:
        _replace(path, data)
    except OSError as error:
        raise ResourceMissing(
            f"cannot write {path}: {error.strerror}",
            hint="free some space, or choose another folder for the output",
        ) from error


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp gives 0600; a report is there to be read
        Path(name).replace(path)
    except OSError:
        with suppress(OSError):
            Path(name).unlink()
        raise
