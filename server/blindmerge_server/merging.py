"""`server merge`: one job, from the plan to the merged model, over the network.

All that the job needs lies in its folder: a command that was killed is run again and goes on.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import JobAborted, TooFewOwners
from blindmerge.files import replacing
from blindmerge.plan import Masks
from blindmerge.signed_plan import SignedPlan
from blindmerge_server.config import Home, JobSettings
from blindmerge_server.exchanges import exchanges
from blindmerge_server.flower_run import flower_run, nodes_online
from blindmerge_server.jobs import JobFolder
from blindmerge_server.patience import PatientGrid
from blindmerge_server.planning import write_plan
from blindmerge_server.report.job_report import JobReport, job_report, write_job_report
from blindmerge_server.simulate.bounds import cached_layouts
from blindmerge_server.strategy import JobRecord, Merge

__all__ = ["run_merge"]

_LOOK_S = 0.5
_LOOK_FOR_OWNERS_S = 2.0
_DAY_S = 86400
Say = Callable[[str], None]


def run_merge(home: Home, settings: JobSettings, say: Say) -> JobReport:
    """Runs the job, or what is left of it; merged model, report and signatures are in its folder.

    say: shows a line to a person.   Raises TooFewOwners and other JobAborted if it cannot go on,
    ResourceMissing if no server answers.
    """
    signed, roster = write_plan(home, settings), home.roster()
    plan, folder = signed.plan, home.jobs / settings.name
    base = Checkpoint(settings.base)
    layouts = cached_layouts(plan, base.path, home.layouts)
    job = JobFolder(folder / "state", plan, round(time.time()) + settings.days * _DAY_S)
    began_s = time.monotonic()
    sums = job.sums(roster, layouts)
    if job.closed:
        say(f"goes on after {job.closed} of {len(exchanges(plan)[0])} exchanges")
    patience_s = 3600 * settings.patience_hours
    with _logging_to(folder / "log"), flower_run(home) as http:
        nodes = _joined(home, signed, patience_s, say)
        grid: Any = PatientGrid(http, _pause, lambda node, why: say(f"  {nodes[node]} {why}"))
        shown = _Shown(job.record, len(exchanges(plan)[0]), say)
        strategy = Merge(
            plan, base, folder / "merged", nodes, sums, shown, job.record, signed.encode()
        )
        strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds, timeout=patience_s)
    report = job_report(signed, roster, job.record, _now(), time.monotonic() - began_s, _versions())
    for phase, proof in enumerate(job.record.proofs):
        with replacing(folder / "transcripts" / f"sum-{phase + 1:03}.cbor") as temporary:
            temporary.write_bytes(proof.transcript.encode())
    write_job_report(report, folder / "report.json")
    return report


def _joined(home: Home, signed: SignedPlan, patience_s: float, say: Say) -> dict[int, str]:
    """Owner by node, once all are there, or as many as a sum needs and the time is over."""
    masks, names = signed.plan.masks, {member.name for member in home.roster().members}
    if not isinstance(masks, Masks):
        raise AssertionError("plans of a coordinator have masks")
    deadline_s = time.monotonic() + patience_s
    said: set[str] = set()
    while True:
        found = {node: name for node, name in nodes_online(home).items() if name in names}
        for name in sorted(set(found.values()) - said):
            said.add(name)
            say(f"  {name} is here ({len(said)} of {len(names)})")
        if len(found) == len(names):
            return found
        if time.monotonic() > deadline_s:
            break
        time.sleep(_LOOK_FOR_OWNERS_S)
    if len(found) < masks.thresholds.quorum:
        raise TooFewOwners(
            f"{len(found)} of {len(names)} owners came, a sum needs {masks.thresholds.quorum}",
            hint=f"missing: {', '.join(sorted(names - set(found.values())))}; then run it again",
        )
    return found


class _Shown:
    """A line for each exchange that is closed, and for each owner that is gone since."""

    def __init__(self, record: JobRecord, total: int, say: Say) -> None:
        self._record = record
        self._total = total
        self._say = say
        self._gone = set(record.dropped)

    def __call__(self, done: int) -> None:
        record = self._record
        for owner in sorted(set(record.dropped) - self._gone):
            drop = record.dropped[owner]
            self._say(f"  {owner} is out at {drop.step}: {drop.reason}")
        self._gone = set(record.dropped)
        step, seconds = list(record.seconds.items())[-1]
        self._say(f"[{done}/{self._total}] {step} ({seconds:.1f} s)")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Flower's own lines go to a file of the job."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    flower = logging.getLogger("flwr")
    before = flower.handlers, flower.propagate
    flower.handlers, flower.propagate = [handler], False
    try:
        yield
    except JobAborted as error:
        flower.error("%s %s", error.message, error.hint)
        raise
    finally:
        flower.handlers, flower.propagate = before
        handler.close()


def _pause() -> None:
    time.sleep(_LOOK_S)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("blindmerge", "flwr", "torch", "transformers")}
