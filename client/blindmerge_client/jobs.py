"""The jobs of an owner on disk: what was asked, what a person said, how far it is.

One folder per job, named by the hash of its plan: `plan` holds the signed plan, `roster` the owners
it is with, `state.json` the rest; the session keeps its own files beside them. Every change is
made under a lock, so the gateway and the commands may run at the same time, and is on the disk
before anything is sent because of it.
"""

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from blindmerge.errors import ConfigInvalid, PeerInvalid, PolicyRefused, ResourceMissing
from blindmerge.files import locked, save_private
from blindmerge.identity import Roster
from blindmerge.plan import Plan
from blindmerge.signed_plan import SignedPlan

__all__ = ["Job", "Jobs", "State"]

State: TypeAlias = Literal["asked", "approved", "refused", "running", "done", "accepted", "kept"]

_NEXT: Mapping[State, tuple[State, ...]] = {
    "asked": ("approved", "refused"),
    "approved": ("running", "refused"),
    "running": ("done", "refused"),
    "refused": ("approved",),
    "done": ("accepted", "kept"),
    "accepted": ("kept",),
    "kept": ("accepted",),
}
_USED: tuple[State, ...] = ("running", "done", "accepted", "kept")
"""Something was sent, perhaps: these count against `max_jobs`."""

_CLOCK_SLACK_S = 60  # by which a clock that is kept right may step back


@dataclass(frozen=True, slots=True)
class Job:
    """A job.

    roster: the owners it is with.   dataset: hash of the training examples.
    since: Unix time of the last change.   change: its number among the changes of all jobs.
    """

    signed: SignedPlan
    roster: Roster
    state: State
    dataset: str
    since: int
    change: int

    @property
    def plan(self) -> Plan:
        """What the job is."""
        return self.signed.plan


class Jobs:
    """All jobs in a folder, which is made if it is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> tuple[Job, ...]:
        """Every job, the latest change last."""
        plans = sorted(self.folder.glob("*/plan"))
        return tuple(sorted((self._read(path.parent) for path in plans), key=lambda j: j.change))

    def check_clock(self, now: int) -> None:
        """Raises PolicyRefused if a job changed after now: what has expired would be answered.

        now: Unix time in seconds.
        """
        for job in self.all():
            if now < job.since - _CLOCK_SLACK_S:
                raise PolicyRefused(
                    f"the clock is before the last change of job '{job.plan.job}'",
                    hint="set the clock right; if it was ahead then, accept, keep, approve or "
                    "refuse that job again, which notes the time anew",
                )

    def earlier(self, plan: Plan, dataset: str) -> tuple[Roster, ...]:
        """With whom these examples were used in other jobs, one roster for each."""
        return tuple(
            job.roster
            for job in self.all()
            if job.dataset == dataset and job.state in _USED and job.plan.sha256 != plan.sha256
        )

    def ask(self, signed: SignedPlan, roster: Roster, dataset: str) -> Job:
        """The job of this plan; a new one is stored as `asked`."""
        folder = self.folder / signed.plan.sha256
        with self._locked():
            if not (folder / "plan").exists():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._write(folder, "asked", dataset)
                save_private(folder / "roster", roster.encode())
                # Last: a folder with this file is a job.
                save_private(folder / "plan", signed.encode())
            return self._read(folder)

    def move(self, plan: Plan, state: State) -> Job:
        """The job in its new state.   Raises ConfigInvalid if it cannot get there."""
        folder = self.folder / plan.sha256
        with self._locked():
            job = self._read(folder)
            if state not in _NEXT[job.state]:
                raise ConfigInvalid(
                    f"job '{plan.job}' is {job.state}, so it cannot become {state}",
                    hint="see `blindmerge client jobs`",
                )
            self._write(folder, state, job.dataset)
            return self._read(folder)

    def finish(self, plan: Plan) -> None:
        """The job is done, if it was running; later states stay."""
        folder = self.folder / plan.sha256
        with self._locked():
            job = self._read(folder)
            if job.state == "running":
                self._write(folder, "done", job.dataset)

    def find(self, name: str | None, *states: State) -> Job:
        """The one job in these states with this name, or whose hash begins so.

        name: None if there is only one such job.   Raises ConfigInvalid unless one fits.
        """
        fitting = [
            job
            for job in self.all()
            if job.state in states
            and (name is None or name == job.plan.job or job.plan.sha256.startswith(name))
        ]
        if len(fitting) == 1:
            return fitting[0]
        named, there = f" '{name}'" if name else "", f"{len(fitting)} jobs"
        raise ConfigInvalid(
            f"{there if fitting else 'no job'}{named} {'are' if fitting else 'is'} "
            f"{' or '.join(states)}",
            hint="`blindmerge client jobs` shows them all; name one, or begin its hash",
        )

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder / "lock")

    def _write(self, folder: Path, state: State, dataset: str) -> None:
        change = 1 + max((job.change for job in self.all()), default=0)
        content = {"state": state, "dataset": dataset, "since": int(time.time()), "change": change}
        save_private(folder / "state.json", json.dumps(content).encode())

    def _read(self, folder: Path) -> Job:
        try:
            signed = SignedPlan.decode((folder / "plan").read_bytes())
            roster = Roster.decode((folder / "roster").read_bytes())
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            fields = (state[key] for key in ("state", "dataset", "since", "change"))
            job = Job(signed, roster, *fields)
        except (FileNotFoundError, PeerInvalid, KeyError, TypeError, ValueError) as error:
            raise _damaged(folder) from error
        if job.state not in get_args(State) or signed.plan.sha256 != folder.name:
            raise _damaged(folder)
        return job


def _damaged(folder: Path) -> ResourceMissing:
    return ResourceMissing(
        f"the state of the job in '{folder}' is damaged",
        hint="restore it from a backup; without it nothing is known of what was sent",
    )
