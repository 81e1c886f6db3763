"""What a dataset's privacy budget was spent on, in a file that cannot be talked round.

One folder per dataset. `entries` is append-only: every entry comes with the SHA-256 of itself and
the hash before it. `head` says how many bytes there are and the last hash. A release is charged,
and the charge synced to disk, before its noise is drawn; its file is stored and synced before
anybody gets it, and a retry gets the same file without a charge. Whatever dies in between is
spent: what is missing may have been sent, for all that the files can tell. A model that was
trained with noise is charged before it gets its place, and its hash is kept.

Seen and refused: an entry that was edited, moved, added or cut off; `entries` or `head` rolled back
or deleted alone; a release that was edited or deleted; a clock before the last entry. Not seen:
both files rolled back to an older copy, and files rewritten consistently by somebody who can
write them, for the chain has no key. Whoever fears that notes the head (`Book.head`) elsewhere.
"""

import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

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
from blindmerge.files import explaining, replacing, save_private, sync_file, sync_folder
from blindmerge.plan import Plan
from blindmerge.privacy.accountant import Cost, Training

__all__ = ["Book", "Budget", "Entry", "Ledger", "subject_of"]

_HASH = 32
_LENGTH = struct.Struct(">I")
_LONGEST_ENTRY = 4096
_PATIENCE_S = 30.0  # for a command that only reads, or noise that is being drawn
_LOOK_S = 0.02


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Entry(_Record):
    """One line of a ledger.

    subject: of `opened` the dataset, else the job or training.   time: Unix time in seconds.
    rho, training: what was `charged`.   sha256: of the release or the model that was `stored`.
    """

    kind: Literal["opened", "charged", "stored"]
    subject: Annotated[str, Field(min_length=1, max_length=200)]
    time: Annotated[int, Field(ge=0)]
    rho: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    training: Training | None = None
    sha256: bytes = b""

    @property
    def cost(self) -> Cost:
        """What it charges; nothing for other entries."""
        return Cost(Fraction(self.rho), () if self.training is None else (self.training,))


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
    def spent(self) -> Cost:
        """Everything that was charged, exactly."""
        return self.spent_but_for("")

    def spent_but_for(self, subject: str) -> Cost:
        """Everything that was charged for other subjects."""
        charges = (entry.cost for entry in self.entries if entry.subject != subject)
        return sum(charges, Cost())

    @property
    def heads(self) -> tuple[bytes, ...]:
        """The hash that was the last one after each entry: notes of all of them are known here."""
        hashes = [bytes(_HASH)]
        for entry in self.entries:
            hashes.append(_chained(hashes[-1], encode(entry.model_dump())))
        return tuple(hashes[1:])

    def find(self, kind: str, subject: str) -> Entry | None:
        """The last entry of this kind for a job or training."""
        same = (e for e in reversed(self.entries) if (e.kind, e.subject) == (kind, subject))
        return next(same, None)

    def training_of(self, sha256: bytes) -> Training | None:
        """How the model with this hash was trained; None if it is not known here."""
        for entry in self.entries:
            charged = self.find("charged", entry.subject)
            if entry.kind == "stored" and entry.sha256 == sha256 and charged is not None:
                return charged.training
        return None


@dataclass(frozen=True, slots=True)
class Budget:
    """What the policy allows for a dataset: epsilon in all, at delta."""

    epsilon: float
    delta: float

    def check(self, spent: Cost, cost: Cost) -> None:
        """Raises BudgetExhausted if a charge of `cost` would exceed the budget."""
        after = (spent + cost).epsilon(self.delta)
        if after > self.epsilon:
            used = spent.epsilon(self.delta)
            raise BudgetExhausted(
                f"this would bring the dataset to epsilon {after:.3g} at delta {self.delta:g}; "
                f"{used:.3g} is spent, {self.epsilon:g} is allowed",
                hint="ask for more noise, use other examples, or raise max_epsilon in policy.toml",
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

    def verify(self, dataset: str) -> Book:
        """`read`, and every release that is kept is what was stored.   Raises likewise."""
        with self._locked():
            book = self._read(dataset)
            for entry in book.entries:
                charged = book.find("charged", entry.subject)
                if entry.kind == "stored" and charged is not None and charged.training is None:
                    self._stored(entry)
            return book

    def release(
        self,
        dataset: str,
        subject: str,
        *,
        cost: Cost,
        budget: Budget,
        now: int,
        make: Callable[[Path], None],
    ) -> Path:
        """The file that `make` writes, charged with `cost`; if there was one before, that one.

        make: draws the noise and writes; it is called once per charge, at most.
        Raises BudgetExhausted before any work, PolicyRefused for a clock that was set back or a
        retry at another price, JobAborted while another job uses the ledger, LedgerTampered.
        """
        with self._locked():
            book = self._read(dataset)
            stored = book.find("stored", subject)
            if stored is not None:
                return self._again(book, stored, cost)
            book = self._charge(book, subject, cost, budget, now)
            drawn = self._folder / "releases" / "drawn"
            with explaining(drawn):
                drawn.unlink(missing_ok=True)
                make(drawn)
                drawn.chmod(0o600)
                sync_file(drawn)
                path = self._path_of(bytes.fromhex(_sha256_of(drawn)))
                drawn.replace(path)
                sync_folder(path.parent)
            self._store(book, subject, bytes.fromhex(path.name), now)
            return path

    def train(
        self,
        dataset: str,
        subject: str,
        *,
        cost: Cost,
        budget: Budget,
        now: int,
        model: str,
    ) -> None:
        """Charges a training whose model is ready, before anybody gets it.

        model: its hash in hex.   Raises as `release` does.
        """
        with self._locked():
            book = self._charge(self._read(dataset), subject, cost, budget, now)
            self._store(book, subject, bytes.fromhex(model), now)

    def _charge(self, book: Book, subject: str, cost: Cost, budget: Budget, now: int) -> Book:
        if now < book.entries[-1].time:
            raise PolicyRefused(
                "the clock is before the last entry of the ledger", hint="set the clock right"
            )
        budget.check(book.spent, cost)
        same = {"kind": "charged", "subject": subject, "time": now}
        trainings = cost.trainings or (None,)
        if len(trainings) > 1 or Fraction(float(cost.rho)) != cost.rho:
            raise AssertionError("one charge is for one release or one training")
        price = {"rho": float(cost.rho), "training": trainings[0]}
        return self._append(book, Entry.model_validate({**same, **price}))

    def _store(self, book: Book, subject: str, sha256: bytes, now: int) -> None:
        self._append(book, Entry(kind="stored", subject=subject, time=now, sha256=sha256))

    def _again(self, book: Book, stored: Entry, cost: Cost) -> Path:
        charged = book.find("charged", stored.subject)
        if charged is None or charged.cost != cost:
            raise PolicyRefused(
                f"'{stored.subject}' was charged at another price",
                hint="a plan with other noise needs another job name",
            )
        return self._stored(stored)

    def _stored(self, entry: Entry) -> Path:
        """The file of a stored release, unchanged."""
        path = self._path_of(entry.sha256)
        if not path.is_file() or _sha256_of(path) != path.name:
            raise _tampered(f"the stored release of '{entry.subject}' is not what was stored")
        return path

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
            self._lock(stream)
            stream.truncate(0)
            stream.write(b"%d" % os.getpid())
            stream.flush()
            yield

    def _lock(self, stream: BinaryIO) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() < deadline_s:
                    time.sleep(_LOOK_S)
                    continue
                holder = stream.read(20).decode("ascii", "replace")
                raise JobAborted(
                    f"process {holder} uses the ledger '{self._folder}'",
                    hint="one job at a time on one dataset: wait for that one",
                ) from None

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


def _chained(before: bytes, body: bytes) -> bytes:
    return hashlib.sha256(before + body).digest()


def subject_of(plan: Plan) -> str:
    """What a ledger calls a job: another plan of the same name is another job."""
    return f"{plan.job}:{plan.sha256}"


def _framed(book: Book, entry: Entry) -> tuple[bytes, Book]:
    """Length, canonical bytes and hash of the next entry; the book with it."""
    body = encode(entry.model_dump())
    head = _chained(book.head, body)
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


def _sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _head_of(book: Book) -> bytes:
    return encode(_Head(size=book.size, sha256=book.head).model_dump())


def _tampered(message: str) -> LedgerTampered:
    return LedgerTampered(
        message,
        hint="bring back its newest copy; without one, count the budget of these examples as spent",
    )
