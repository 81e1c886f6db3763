"""Masked blocks on disk, until the survivors are known (SPEC §6, step R2.4).

One folder per run, one file per owner; a block has its place in it. Memory holds one block.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from blindmerge.errors import ResourceMissing
from blindmerge.files import save_private
from blindmerge.secagg.digests import digest_of
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.persist import dump, load

__all__ = ["Blocks", "Receipt", "Spool"]


class Blocks(Protocol):
    """Where masked blocks are kept; they are counted through all parts."""

    def write(self, seat: int, block: int, payload: bytes) -> None:
        """Keeps a block; it survives a restart when `sync` has returned."""

    def sync(self, seat: int) -> None:
        """Makes sure of all blocks of an owner; call it before the state is saved."""

    def read(self, seat: int, block: int, digest: bytes) -> bytes:
        """The block, if its digest is still `digest`."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """An owner's answer with all blocks of a part was accepted.

    size_bytes: of the answer.   digests: of each of the part's blocks.
    """

    seat: int
    part: int
    size_bytes: int
    digests: dict[int, bytes]


class Spool:
    """The blocks of one run in a folder, and receipts for what is complete."""

    def __init__(self, folder: Path, manifest: SumManifest) -> None:
        self._folder = folder / manifest.hash.hex()
        self._manifest = manifest
        sizes = (part.elements * part.bits // 8 for part in manifest.parts)
        self._starts = tuple(accumulate(sizes, initial=0))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._full("made", error) from error

    def write(self, seat: int, block: int, payload: bytes) -> None:
        """Keeps a block, as soon as it is synced.   Raises ResourceMissing on a full disk."""
        try:
            file = os.open(self._path(seat), os.O_RDWR | os.O_CREAT, 0o600)
            with open(file, "r+b") as stream:
                stream.seek(self._place(block))
                stream.write(payload)
        except OSError as error:
            raise self._full("written", error) from error

    def sync(self, seat: int) -> None:
        """Returns when all blocks of an owner are on the disk.

        Raises ResourceMissing if the disk does not take them.
        """
        try:
            for path in (self._path(seat), self._folder):
                file = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)
        except OSError as error:
            raise self._full("written", error) from error

    def acknowledge(self, receipt: Receipt) -> None:
        """Syncs an owner's blocks, and notes that they are there.

        Raises ResourceMissing if the disk does not take it.
        """
        self.sync(receipt.seat)
        name = f"{receipt.seat:05d}-{receipt.part:05d}.receipt"
        save_private(self._folder / name, dump(receipt))

    def receipts(self, part: int | None = None) -> Iterator[Receipt]:
        """What was acknowledged, also before a restart.   part: of which one; None: of all.

        Raises JobAborted if a receipt is damaged.
        """
        for path in sorted(
            self._folder.glob(f"*-{'*' if part is None else f'{part:05d}'}.receipt")
        ):
            yield load(Receipt, path.read_bytes())

    def read(self, seat: int, block: int, digest: bytes) -> bytes:
        """The block, if its digest is still `digest`.

        Raises ResourceMissing if it is not there or is damaged.
        """
        try:
            with open(self._path(seat), "rb") as stream:
                stream.seek(self._place(block))
                payload = stream.read(self._manifest.wire_bytes(block))
        except OSError as error:
            raise self._full("read", error) from error
        if digest_of(payload) != digest:
            raise ResourceMissing(
                f"block {block} of seat {seat} is damaged in the spool",
                hint="the sum is lost; check the disk before the next attempt",
            )
        return payload

    def forget(self, seat: int) -> None:
        """Removes the blocks of an owner, as of one that dropped out."""
        for path in (*self._folder.glob(f"{seat:05d}-*.receipt"), self._path(seat)):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all blocks of the run."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _place(self, block: int) -> int:
        """Where a block begins in its owner's file; only the last of a part is shorter."""
        part, index = self._manifest.locate(block)
        return self._starts[part] + index * self._manifest.parts[part].wire_bytes(0)

    def _path(self, seat: int) -> Path:
        return self._folder / f"{seat:05d}.blocks"

    def _full(self, verb: str, error: OSError) -> ResourceMissing:
        return ResourceMissing(
            f"the spool of masked blocks cannot be {verb}: {error.strerror}",
            hint=f"check space and owner of {self._folder.parent}",
        )
