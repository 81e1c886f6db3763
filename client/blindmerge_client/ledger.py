"""What a dataset's privacy budget was spent on, in a file that cannot be talked round.

One folder per dataset. `entries` is append-only: every entry comes with the SHA-256 of itself and
the hash before it. `head` says how many bytes there are and the last hash. A release is charged,
and the charge synced to disk, before its noise is drawn; its bytes are stored and synced before
anybody gets them, and a retry gets the same bytes without a charge. Whatever dies in between is
spent: bytes that are missing may have been sent, for all that the files can tell.

Seen and refused: an entry that was edited, moved, added or cut off; `entries` or `head` rolled back
or deleted alone; a release that was edited or deleted; a clock before the last entry. Not seen:
both files rolled back to an older copy, and files rewritten consistently by somebody who can
write them, for the chain has no key. Whoever fears that notes the head (`Book.head`) elsewhere.
"""

import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from blindmerge.canonical import decode_as, encode
from blindmerge.errors import (
    BudgetExhausted,
    ConfigInvalid,
    JobAborted,
    LedgerTampered,
    PeerInvalid,
    PolicyRefused,
)
from blindmerge.files import explaining, replacing, save_private
from blindmerge.privacy.accountant import epsilon_of

__all__ = ["Book", "Budget", "Entry", "Ledger"]

_HASH = 32
_LENGTH = struct.Struct(">I")
_LONGEST_ENTRY = 4096


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Entry(_Record):
    """One line of a ledger.

    subject: of `opened` the dataset, else the job.   time: Unix time in seconds.
    rho: what a `charged` release costs.   sha256: of the bytes of a `stored` release.
    """

    kind: Literal["opened", "charged", "stored"]
    subject: Annotated[str, Field(min_length=1, max_length=200)]
    phase: Annotated[int, Field(ge=0)] = 0
    time: Annotated[int, Field(ge=0)]
    rho: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    sha256: bytes = b""


class _Head(_Record):
    size: Annotated[int, Field(ge=0)]
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Book:
    """The entries of a ledger, verified. head: the last hash.   size: bytes of the entries."""

    entries: tuple[Entry, ...] = ()
    head: bytes = bytes(_HASH)
    size: int = 0

    @property
    def spent(self) -> Fraction:
        """rho of everything that was charged, exactly."""
        return sum((Fraction(entry.rho) for entry in self.entries), Fraction(0))

    def find(self, kind: str, job: str, phase: int) -> Entry | None:
        """The last entry of this kind for a phase of a job."""
        same = (
            e for e in reversed(self.entries) if (e.kind, e.subject, e.phase) == (kind, job, phase)
        )
        return next(same, None)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the policy allows for a dataset: rho in all; delta is for people, who read epsilon."""

    rho: float
    delta: float

    def check(self, spent: Fraction, rho: float) -> None:
        """Raises BudgetExhausted if a charge of `rho` would exceed the budget."""
        after = spent + Fraction(rho)
        if after > Fraction(self.rho):
            asked, used, allowed = (
                f"{epsilon_of(float(each), self.delta):.3g}" for each in (after, spent, self.rho)
            )
            raise BudgetExhausted(
                f"this release would bring the dataset to epsilon {asked} at delta {self.delta:g}; "
                f"{used} is spent, {allowed} is allowed",
                hint="ask for more noise, use other examples, or raise the budget in policy.toml",
            )


class Ledger:
    """The ledger in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries = folder / "entries"

    @classmethod
    def create(cls, folder: Path, dataset: str, *, now: int) -> "Ledger":
        """A ledger that says nothing is spent of `dataset`, such as the hash of its file.

        Raises ConfigInvalid if the folder exists, ResourceMissing if it cannot be written.
        """
        if folder.exists():
            raise ConfigInvalid(f"there is a ledger in '{folder}' already", hint="go on with it")
        frame, book = _framed(Book(), Entry(kind="opened", subject=dataset, time=now))
        with replacing(folder) as new:
            new.mkdir(mode=0o700)
            for name, data in (("entries", frame), ("head", _head_of(book)), ("lock", b"")):
                file = os.open(new / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(file, "wb") as stream:
                    stream.write(data)
            (new / "releases").mkdir(mode=0o700)
        return cls(folder)

    def read(self, dataset: str) -> Book:
        """What was spent of `dataset`.

        Raises LedgerTampered, also without a ledger and for one of another dataset, and
        JobAborted while a job uses it.
        """
        with self._locked():
            return self._read(dataset)

    def release(
        self,
        dataset: str,
        job: str,
        phase: int,
        *,
        rho: float,
        budget: Budget,
        now: int,
        make: Callable[[], bytes],
    ) -> bytes:
        """The bytes of `make()`, charged with `rho`; those of the first time if there was one.

        make: draws the noise; it is called once per charge, at most.
        Raises BudgetExhausted before any work, PolicyRefused for a clock that was set back or a
        retry at another price, JobAborted while another job uses the ledger, LedgerTampered.
        """
        with self._locked():
            book = self._read(dataset)
            stored = book.find("stored", job, phase)
            if stored is not None:
                return self._again(book, stored, rho)
            if now < book.entries[-1].time:
                raise PolicyRefused(
                    "the clock is before the last entry of the ledger", hint="set the clock right"
                )
            budget.check(book.spent, rho)
            entry = Entry(kind="charged", subject=job, phase=phase, time=now, rho=rho)
            book = self._append(book, entry)
            data = make()
            sha256 = hashlib.sha256(data).digest()
            save_private(self._path_of(sha256), data)
            same = {"subject": job, "phase": phase, "time": now, "sha256": sha256}
            self._append(book, Entry.model_validate({"kind": "stored", **same}))
            return data

    def _again(self, book: Book, stored: Entry, rho: float) -> bytes:
        charged = book.find("charged", stored.subject, stored.phase)
        if charged is None or charged.rho != rho:
            raise PolicyRefused(
                f"job '{stored.subject}' was charged at another price",
                hint="a plan with other noise needs another job name",
            )
        try:
            data = self._path_of(stored.sha256).read_bytes()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).digest() != stored.sha256:
            raise _tampered(f"the stored release of job '{stored.subject}' is not what was stored")
        return data

    def _path_of(self, sha256: bytes) -> Path:
        return self._folder / "releases" / sha256.hex()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            file = os.open(self._folder / "lock", os.O_RDWR)
        except FileNotFoundError:
            raise _tampered(f"there is no ledger in '{self._folder}'") from None
        # The lock goes with the open file: also when the process dies.
        with open(file, "r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = stream.read(20).decode("ascii", "replace")
                raise JobAborted(
                    f"process {holder} uses the ledger '{self._folder}'",
                    hint="one job at a time on one dataset: wait for that one",
                ) from None
            stream.truncate(0)
            stream.write(b"%d" % os.getpid())
            stream.flush()
            yield

    def _read(self, dataset: str) -> Book:
        try:
            data = self._entries.read_bytes()
            head = decode_as(_Head, (self._folder / "head").read_bytes(), "the ledger's head")
        except (FileNotFoundError, PeerInvalid):
            raise _tampered(
                f"a file of the ledger '{self._folder}' is missing or damaged"
            ) from None
        book = Book()
        while book.size < head.size:
            following = _next(book, data)
            if following is None:
                raise _tampered(f"the ledger '{self._folder}' was edited or cut off")
            book = following
        if (book.size, book.head) != (head.size, head.sha256):
            raise _tampered(f"the ledger '{self._folder}' and its head do not fit together")
        # The process may have died between the entry and the head, or within the entry, which
        # is then dropped: before an entry is whole and synced, no noise is drawn.
        latest = _next(book, data) or book
        if latest.size > book.size and _next(latest, data) is not None:
            raise _tampered(f"the ledger '{self._folder}' has entries that its head does not know")
        first = latest.entries[0] if latest.entries else None
        if first is None or (first.kind, first.subject) != ("opened", dataset):
            raise _tampered(f"the ledger '{self._folder}' is not that of these examples")
        return latest

    def _append(self, book: Book, entry: Entry) -> Book:
        """Returns when entry and head are synced."""
        frame, after = _framed(book, entry)
        with explaining(self._entries):
            file = os.open(self._entries, os.O_WRONLY)
            with open(file, "wb", buffering=0) as stream:
                stream.truncate(book.size)  # half an entry of a process that died
                stream.seek(book.size)
                # Of a short write the hash does not fit: it counts as half an entry.
                stream.write(frame)
                os.fsync(stream.fileno())
        save_private(self._folder / "head", _head_of(after))
        return after


def _framed(book: Book, entry: Entry) -> tuple[bytes, Book]:
    """Length, canonical bytes and hash of the next entry; the book with it."""
    body = encode(entry.model_dump())
    head = hashlib.sha256(book.head + body).digest()
    frame = _LENGTH.pack(len(body)) + body + head
    after = replace(book, entries=(*book.entries, entry), head=head, size=book.size + len(frame))
    return frame, after


def _next(book: Book, data: bytes) -> Book | None:
    """The book with the entry that follows in `data`; None if none does, or not a whole one."""
    start = book.size + _LENGTH.size
    if start > len(data):
        return None
    (length,) = _LENGTH.unpack(data[book.size : start])
    body = data[start : start + length]
    if length > _LONGEST_ENTRY or start + length + _HASH > len(data):
        return None
    try:
        frame, after = _framed(book, decode_as(Entry, body, "an entry of the ledger"))
    except PeerInvalid:
        return None
    return after if data[book.size : after.size] == frame else None


def _head_of(book: Book) -> bytes:
    return encode(_Head(size=book.size, sha256=book.head).model_dump())


def _tampered(message: str) -> LedgerTampered:
    return LedgerTampered(
        message,
        hint="bring back its newest copy; without one, count the budget of these examples as spent",
    )
