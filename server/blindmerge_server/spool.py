"""Masked blocks on disk, until the survivors are known (SPEC §6, step R2.4).

One folder per run, one file per owner; a block has its place in it. Memory holds one block.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Protocol

from blindmerge.encoding import Layout
from blindmerge.errors import ResourceMissing

__all__ = ["Blocks", "Spool"]


class Blocks(Protocol):
    """Where masked blocks are kept."""

    def write(self, seat: int, index: int, payload: bytes) -> None:
        """Keeps a block; it survives a restart when this returns."""

    def read(self, seat: int, index: int, digest: bytes) -> bytes:
        """The block, if its SHA-256 is still `digest`."""


class Spool:
    """The blocks of one run in a folder."""

    def __init__(self, folder: Path, manifest_hash: bytes, layout: Layout) -> None:
        self._folder = folder / manifest_hash.hex()
        self._layout = layout
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._full("made", error) from error

    def write(self, seat: int, index: int, payload: bytes) -> None:
        """Keeps a block and syncs it.   Raises ResourceMissing if the disk does not."""
        try:
            file = os.open(self._path(seat), os.O_RDWR | os.O_CREAT, 0o600)
            with open(file, "r+b") as stream:
                stream.seek(index * self._layout.wire_bytes(0))
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise self._full("written", error) from error

    def read(self, seat: int, index: int, digest: bytes) -> bytes:
        """The block, if its SHA-256 is still `digest`.

        Raises ResourceMissing if it is not there or is damaged.
        """
        try:
            with open(self._path(seat), "rb") as stream:
                stream.seek(index * self._layout.wire_bytes(0))
                payload = stream.read(self._layout.wire_bytes(index))
        except OSError as error:
            raise self._full("read", error) from error
        if hashlib.sha256(payload).digest() != digest:
            raise ResourceMissing(
                f"block {index} of seat {seat} is damaged in the spool",
                hint="the sum is lost; check the disk before the next attempt",
            )
        return payload

    def forget(self, seat: int) -> None:
        """Removes the blocks of an owner, as of one that dropped out."""
        self._path(seat).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all blocks of the run."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, seat: int) -> Path:
        return self._folder / f"{seat:05d}.blocks"

    def _full(self, verb: str, error: OSError) -> ResourceMissing:
        return ResourceMissing(
            f"the spool of masked blocks cannot be {verb}: {error.strerror}",
            hint=f"check space and owner of {self._folder.parent}",
        )
