"""Files that are whole or absent, whenever the process dies."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blindmerge.errors import ResourceMissing

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path`, to be made into a file or folder by the caller.

    It takes the place of `path` when the block ends well; otherwise it is removed and
    `path` stays as it was. If another process made the *folder* `path` meanwhile, that one stays.
    Raises ResourceMissing if the disk is full or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            return
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "permission denied",
            errno.EROFS: "the disk is read-only",
        }
        if error.errno not in reasons:
            raise
        raise ResourceMissing(
            f"cannot write '{path}': {reasons[error.errno]}",
            hint="free some space or choose another folder, then run the same command again",
        ) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
