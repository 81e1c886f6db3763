"""What a coordinator sees of the jobs and owners in its folder."""

from dataclasses import dataclass
from pathlib import Path

from blindmerge.errors import JobAborted
from blindmerge.files import only_one
from blindmerge.plan import Plan
from blindmerge_server.config import Home
from blindmerge_server.exchanges import exchanges
from blindmerge_server.flower_run import nodes
from blindmerge_server.jobs import JobFolder
from blindmerge_server.planning import read_plan

__all__ = ["JobLine", "OwnerLine", "job_lines", "owner_lines"]


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job. state: in words.   folder: of its results, if it is done."""

    plan: Plan
    state: str
    folder: Path | None


@dataclass(frozen=True, slots=True)
class OwnerLine:
    """An owner. state: whether it is connected, in words."""

    name: str
    state: str


def job_lines(home: Home) -> tuple[JobLine, ...]:
    """Every job that has a plan, by name.   Raises ConfigInvalid if a plan is damaged."""
    names = sorted(file.stem for file in home.plans.glob("*.plan"))
    return tuple(_job_line(home, read_plan(home, name).plan) for name in names)


def owner_lines(home: Home) -> tuple[OwnerLine, ...]:
    """Every owner, by name.   Raises ResourceMissing if the server does not answer."""
    known = {node.name: node for node in nodes(home)}
    lines = []
    for owner in home.owners():
        node = known.get(owner.name)
        if node is None:
            state = "not let in yet"
        elif node.status == "online":
            state = f"connected since {_minute(node.last_activated_at)}"
        elif node.last_deactivated_at:
            state = f"gone since {_minute(node.last_deactivated_at)}"
        else:
            state = "gone" if node.last_activated_at else "was never here"
        lines.append(OwnerLine(owner.name, state))
    return tuple(lines)


def _job_line(home: Home, plan: Plan) -> JobLine:
    folder = home.jobs / plan.job
    if (folder / "report.json").exists():
        return JobLine(plan, "done", folder)
    if not (folder / "state" / "state").exists():
        return JobLine(plan, "planned", None)
    try:
        job, total = JobFolder(folder / "state", plan, 0), len(exchanges(plan)[0])
    except JobAborted as error:
        return JobLine(plan, error.message, None)
    out = f", {len(job.record.dropped)} owner(s) out" if job.record.dropped else ""
    how = "is running" if _merging(home, plan.job) else "stopped: merge it again"
    return JobLine(plan, f"{how}, {job.closed} of {total} exchanges{out}", None)


def _merging(home: Home, name: str) -> bool:
    """Whether some `server merge` runs this job."""
    try:
        with only_one(home.merge_lock_file, "it is"):
            return False
    except JobAborted:
        return home.merge_lock_file.read_text() == name


def _minute(time: str) -> str:
    """`2027-01-31 12:30` of an ISO 8601 time."""
    return time[:16].replace("T", " ")
