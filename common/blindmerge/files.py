"""Files that are whole or absent, whenever the process dies."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from blindmerge.errors import JobAborted, ResourceMissing

__all__ = [
    "explaining",
    "locked",
    "only_one",
    "replacing",
    "save_array",
    "save_private",
    "sync_file",
    "sync_folder",
]

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EROFS: "the disk is read-only",
}


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """What is written in the block goes to `path`; raises ResourceMissing if it cannot."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise ResourceMissing(
            f"cannot write '{path}': {_REASONS[error.errno]}",
            hint="free some space or choose another folder, then run the same command again",
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path`, to be made into a file or folder by the caller.

    It takes the place of `path` when the block ends well; otherwise it is removed and
    `path` stays as it was. If another process made the *folder* `path` meanwhile, that one stays.
    Raises ResourceMissing if the disk is full or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _remove(temporary)
            yield temporary
            _sync(temporary)
            _put(temporary, path)
        finally:
            _remove(temporary)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Writes a `.npy` file; where the disk is full, the OSError says so."""
    with path.open("wb") as stream:
        # numpy writes to real files by itself, and its OSError has no errno.
        target: Any = SimpleNamespace(write=stream.write)
        np.save(target, array)


def save_private(path: Path, data: bytes) -> None:
    """Replaces a file that only its owner may read; returns when file and folder are synced.

    Raises ResourceMissing as `replacing` does.
    """
    with replacing(path) as temporary:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "wb") as stream:
            stream.write(data)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Returns when what was written to a file is on disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; whoever else wants it waits, in this process and in others.

    It goes with the block, or with the process.   Raises ResourceMissing if it cannot be made.
    """
    with _lock_file(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path`.   what: is going on if somebody else holds it, for a person.

    Raises JobAborted then, and ResourceMissing if the file cannot be made.
    """
    with _lock_file(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobAborted(what, hint="wait for it, or stop it first") from None
        yield


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    with explaining(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _put(temporary: Path, path: Path) -> None:
    if temporary.is_dir() and path.is_dir():
        return
    try:
        temporary.replace(path)
    except OSError:
        # Another process was faster, between the line above and this one.
        if not (temporary.is_dir() and path.is_dir()):
            raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            sync_file(file)
