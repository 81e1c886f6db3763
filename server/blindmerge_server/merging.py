"""`server merge`: one job, from the plan to the merged model, over the network.

All that the job needs lies in its folder: a command that was killed is run again and goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ArrayRecord
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
)

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import JobAborted, TooFewOwners
from blindmerge.files import only_one, replacing
from blindmerge.plan import Masks
from blindmerge.signed_plan import SignedPlan
from blindmerge_server.config import Home, JobSettings
from blindmerge_server.exchanges import exchanges
from blindmerge_server.flower_run import ServerGone, flower_run, nodes_online
from blindmerge_server.jobs import JobFolder
from blindmerge_server.onlooker import JobShown
from blindmerge_server.patience import PatientGrid
from blindmerge_server.planning import write_plan
from blindmerge_server.report.job_report import (
    JobReport,
    job_report,
    read_job_report,
    write_job_report,
)
from blindmerge_server.simulate.bounds import cached_layouts
from blindmerge_server.strategy import JobRecord, Merge

__all__ = ["run_merge"]

_log = logging.getLogger("flwr")
_LOST = (httpx.HTTPError, ObjectPullError, ObjectPushError, ObjectUnavailableError, ServerGone)
_LOOK_S = 0.5
_AGAIN_S = 5.0
_LOOK_FOR_OWNERS_S = 2.0
_DAY_S = 86400
Say = Callable[[str], None]


def run_merge(home: Home, settings: JobSettings, say: Say) -> JobReport:
    """Runs the job, or what is left of it; merged model, report and signatures are in its folder.

    say: shows a line to a person.   Raises TooFewOwners and other JobAborted if it cannot go on,
    ResourceMissing if no server answers.
    """
    with only_one(home.merge_lock_file, "another `blindmerge server merge` runs in this folder"):
        home.merge_lock_file.write_text(settings.name)  # for whoever asks what goes on
        return _run(home, settings, say)


def _run(home: Home, settings: JobSettings, say: Say) -> JobReport:
    signed, folder = write_plan(home, settings), home.jobs / settings.name
    if (folder / "report.json").exists():
        say("this job is done; a new one needs a new name")
        return read_job_report(folder / "report.json")
    began_s = time.monotonic()
    with _logging_to(folder / "log"):
        record = _in_spite_of_losses(
            lambda begun: _attempt(home, settings, signed, say, begun), say
        )
    seconds = time.monotonic() - began_s
    report = job_report(signed, home.roster(), record, _now(), seconds, _versions())
    for phase, proof in enumerate(record.proofs):
        with replacing(folder / "transcripts" / f"sum-{phase + 1:03}.cbor") as temporary:
            temporary.write_bytes(proof.transcript.encode())
    write_job_report(report, folder / "report.json")
    return report


def _in_spite_of_losses(attempt: Callable[[Callable[[], None]], JobRecord], say: Say) -> JobRecord:
    """Attempts the job again whenever the server is lost; a server that never answered is not.

    attempt: is given what to call once the server has answered.
    """
    answered = threading.Event()
    said = False
    while True:
        try:
            return attempt(answered.set)
        except _LOST as error:
            if not answered.is_set():
                raise
            _log.warning("the server is lost: %s", error)
            if not said:
                say("  the server is lost; waiting for it (blindmerge server run)")
            said = True
            time.sleep(_AGAIN_S)


def _attempt(
    home: Home, settings: JobSettings, signed: SignedPlan, say: Say, begun: Callable[[], None]
) -> JobRecord:
    """What is left of the job."""
    plan, folder = signed.plan, home.jobs / settings.name
    patience_s = 3600 * settings.patience_hours
    base, total = Checkpoint(settings.base), len(exchanges(plan)[0])
    job = JobFolder(folder / "state", plan, round(time.time()) + settings.days * _DAY_S)
    sums = job.sums(home.roster(), cached_layouts(plan, base.path, home.layouts))
    if job.closed:
        say(f"goes on after {job.closed} of {total} exchanges")
    with flower_run(home) as http:
        begun()
        nodes = _joined(home, signed, {*job.record.dropped}, patience_s, say)
        shown = JobShown(plan, job.record, nodes, job.closed, say)
        grid: Any = PatientGrid(http, lambda: _pause(shown), shown)
        strategy = Merge(
            plan, base, folder / "merged", nodes, sums, shown.closed, job.record, signed.encode()
        )
        try:
            strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds, timeout=patience_s)
        finally:
            shown.end()
    return job.record


def _joined(
    home: Home, signed: SignedPlan, out: set[str], patience_s: float, say: Say
) -> dict[int, str]:
    """Owner by node, once all are there, or as many as a sum needs and the time is over.

    out: who left the job before; nobody waits for them.
    """
    masks = signed.plan.masks
    names = {member.name for member in home.roster().members} - out
    if not isinstance(masks, Masks):
        raise AssertionError("plans of a coordinator have masks")
    deadline_s = time.monotonic() + patience_s
    said: set[str] = set()
    waited_for: set[str] = set()
    while True:
        found = {node: name for node, name in nodes_online(home).items() if name in names}
        for name in sorted(set(found.values()) - said):
            said.add(name)
            say(f"  {name} is here ({len(said)} of {len(names)})")
        if len(found) == len(names):
            return found
        if time.monotonic() > deadline_s:
            break
        missing = names - set(found.values())
        if missing != waited_for:
            say(f"  waiting for {', '.join(sorted(missing))}")
            waited_for = missing
        time.sleep(_LOOK_FOR_OWNERS_S)
    if len(found) < masks.thresholds.quorum:
        raise TooFewOwners(
            f"{len(found)} of {len(names)} owners came, a sum needs {masks.thresholds.quorum}",
            hint=f"missing: {', '.join(sorted(names - set(found.values())))}; then run it again",
        )
    return found


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


def _pause(shown: JobShown) -> None:
    shown.look()
    time.sleep(_LOOK_S)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("blindmerge", "flwr", "torch", "transformers")}
