"""A job on the coordinator's disk, so that a server that was killed goes on with it.

    folder = JobFolder(path, plan, expires)
    sums = folder.sums(roster, layouts)
    Merge(plan, base, out, nodes, sums, record=folder.record).start(...)

`state` is replaced whenever an exchange is closed, before anybody is asked for the next thing:
what was closed stays closed (secagg/SPEC.md §6). It holds secrets only while a sum goes on.
`blocks` has the masked blocks of that sum, each synced before a state or receipt says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blindmerge.encoding import Layout
from blindmerge.errors import JobAborted, ResourceMissing
from blindmerge.files import save_private
from blindmerge.identity import Roster
from blindmerge.merge import LayerReport
from blindmerge.plan import Plan
from blindmerge.secagg.persist import dump, load
from blindmerge_server.strategy import Drop, JobRecord
from blindmerge_server.sums import SecureSums, SumsState

__all__ = ["JobFolder"]

_LABEL = "blindmerge/1 job"


@dataclass(frozen=True, slots=True)
class _Record:
    """A `JobRecord` without its proofs, which are with the sums; pairs keep their order."""

    owners: tuple[tuple[str, tuple[str, ...]], ...]
    layers: tuple[LayerReport, ...]
    seconds: tuple[tuple[str, float], ...]
    sent_bytes: dict[str, int]
    dropped: dict[str, Drop]


@dataclass(frozen=True, slots=True)
class _Saved:
    label: str
    plan: str
    expires: int
    sums: SumsState | None
    record: _Record


class JobFolder:
    """The folder of one job with masks.

    expires: Unix time in seconds after which no owner joins; a job that is there keeps its own.
    Raises JobAborted if the folder holds another job, or a state that is damaged.
    """

    def __init__(self, path: Path, plan: Plan, expires: int) -> None:
        self._path = path
        self._plan = plan
        self.record = JobRecord()
        self._expires = expires
        self._kept: SumsState | None = None
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            # Before anybody hears of the job: the time when it expires is part of its sums.
            self._save(None)
        except OSError as error:
            raise ResourceMissing(
                f"'{self._file}' cannot be read: {error.strerror}", hint="check who owns the folder"
            ) from error
        else:
            self._restore(data)

    @property
    def closed(self) -> int:
        """How many exchanges were closed when the job was last kept."""
        return self._kept.closed if self._kept else 0

    def sums(self, roster: Roster, layouts: Sequence[Sequence[Layout]]) -> SecureSums:
        """The sums of the job, where they were; from now on they are kept.

        Raises PeerInvalid and JobAborted as `SecureSums` does.
        """
        blocks, kept = self._path / "blocks", self._kept
        try:
            return SecureSums(self._plan, roster, layouts, blocks, self._expires, kept, self._save)
        except JobAborted as error:
            raise self._lost() from error

    @property
    def _file(self) -> Path:
        return self._path / "state"

    def _save(self, sums: SumsState | None) -> None:
        self._kept, record = sums, self.record
        kept = _Record(
            tuple(record.owners.items()),
            tuple(record.layers),
            tuple(record.seconds.items()),
            record.sent_bytes,
            record.dropped,
        )
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        saved = _Saved(_LABEL, self._plan.sha256, self._expires, sums, kept)
        save_private(self._file, dump(saved))

    def _restore(self, data: bytes) -> None:
        try:
            saved = load(_Saved, data)
        except JobAborted as error:
            raise self._lost() from error
        if (saved.label, saved.plan) != (_LABEL, self._plan.sha256):
            raise JobAborted(
                f"'{self._path}' holds a job with another plan than '{self._plan.job}' has now",
                hint="put the plan back, or give the job a new name",
            )
        self._expires, self._kept, record = saved.expires, saved.sums, saved.record
        self.record.owners.update(record.owners)
        self.record.layers.extend(record.layers)
        self.record.seconds.update(record.seconds)
        self.record.sent_bytes.update(record.sent_bytes)
        self.record.dropped.update(record.dropped)

    def _lost(self) -> JobAborted:
        return JobAborted(
            f"the state of job '{self._plan.job}' in '{self._path}' is damaged",
            hint="nothing was revealed; run the plan again as a job with a new name",
        )
