"""The two Flower apps of a simulation, and how they are run (Flower's simulation, on Ray).

The ClientApp is the product's courier; what only a simulation asks of owners, fine-tuning,
is one more request. Owners live in Ray's worker processes.
"""

import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from blindmerge.errors import BlindmergeError, Interrupted, ResourceMissing, TooFewOwners
from blindmerge.plan import Plan
from blindmerge_client.app import courier
from blindmerge_client.data import read_examples
from blindmerge_client.owner import Owner
from blindmerge_server.exchanges import exchanges
from blindmerge_server.grid import StreamingGrid
from blindmerge_server.simulate.setting import Pupil, Setting
from blindmerge_server.simulate.watch import Watch
from blindmerge_server.strategy import Drop, JobRecord, Merge
from blindmerge_server.sums import OpenSums, SecureSums, Sums

__all__ = ["FINE_TUNING", "FlowerRun", "client_app", "run_in_flower"]

FINE_TUNING = "fine-tuning"
_FINE_TUNE = "fine_tune"
_STOP = "stop"  # a file in the owners' common folder that ends their trainings
_TIMEOUT_S = 7 * 24 * 3600.0  # a simulation has nobody to wait for but its own processes
_LOADED_OWNERS = 4  # owners whose model stays in a worker's memory


@dataclass
class FlowerRun:
    """What happened. missing: owners that could not be fine-tuned, and why."""

    jobs: dict[str, JobRecord] = field(default_factory=dict)
    missing: dict[str, Drop] = field(default_factory=dict)
    fine_tune_s: float = 0.0
    method_s: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None


@functools.lru_cache(maxsize=_LOADED_OWNERS)
def _owner(pupil: Pupil) -> Owner:
    """The owner in this process: its model stays loaded from phase to phase."""
    pupil.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _log_to(pupil.folder / "log.txt")
    progress = pupil.folder / "progress"

    def step(done: int, total: int) -> None:
        progress.write_text(f"{done} {total}")
        if (pupil.folder.parent / _STOP).exists():
            raise Interrupted("stopped")

    own = pupil.fine_tuned(step)
    test = read_examples(pupil.test, pupil.labels, pupil.task)
    return Owner(
        pupil.name,
        pupil.base,
        own,
        pupil.examples(),
        pupil.folder,
        pupil.masks,
        test,
        pupil.account(own),
    )


def _log_to(path: Path) -> None:
    logger = logging.getLogger("blindmerge")
    logger.handlers = [logging.FileHandler(path)]


def client_app(pupils: tuple[Pupil, ...]) -> ClientApp:
    """The courier of the owner whose number is the node's `partition-id`."""

    def pupil_of(context: Context) -> Pupil:
        return pupils[int(context.node_config["partition-id"])]

    app = courier(lambda context: _owner(pupil_of(context)), Plan.decode)

    @app.query(_FINE_TUNE)
    def fine_tune(message: Message, context: Context) -> Message:
        pupil = pupil_of(context)
        reply: dict[str, Any] = {"owner": pupil.name}
        try:
            _owner(pupil)
        except BlindmergeError as error:
            reply |= {"error": f"{type(error).__name__}: {error.message}"}
        return Message(RecordDict({"reply": ConfigRecord(reply)}), reply_to=message)

    return app


def run_in_flower(setting: Setting, out: dict[str, Path], watch: Watch) -> FlowerRun:
    """Fine-tunes every owner, then runs every plan; merged models go to `out`, by method.

    Raises TooFewOwners, Interrupted, ResourceMissing if Ray does not start.
    """
    run = FlowerRun()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:
        try:
            _serve(setting, out, watch, StreamingGrid(grid, watch.pause), run)
        except Exception as error:  # raised again in the main thread
            run.error = error
            # Flower waits for what its workers are at, which may be a long training.
            (setting.owners / _STOP).touch()

    try:
        with _signals_stop(watch):
            run_simulation(
                server_app=server,
                client_app=client_app(setting.pupils),
                num_supernodes=len(setting.pupils),
                backend_config=_backend(len(setting.pupils)),
            )
    except RuntimeError as error:
        if run.error is None:
            raise ResourceMissing(
                f"Flower's simulation did not run: {error}", hint="see the lines above"
            ) from error
    if run.error is not None:
        raise run.error
    return run


@contextmanager
def _signals_stop(watch: Watch) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run at the server's next pause.

    A KeyboardInterrupt in the main thread would leave Flower's threads waiting for each other.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda *_: watch.stop.set()) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def _backend(owners: int) -> Any:
    cores = len(os.sched_getaffinity(0))
    return {
        "init_args": {
            "num_cpus": cores,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            # Its notes on second tries would go into the table of scores.
            "_system_config": {"enable_output_error_log_if_still_retry": False},
        },
        # Flower hands these to Ray as options of its workers. It gives a worker that died the
        # next owner's message: without a restart, and a second try when it is ready, one death
        # would take other owners with it.
        "client_resources": {
            "num_cpus": max(1, cores // owners),
            "num_gpus": 0.0,
            "max_restarts": -1,
            "max_task_retries": 1,
        },
    }


def _serve(setting: Setting, out: dict[str, Path], watch: Watch, grid: Any, run: FlowerRun) -> None:
    started_s = time.monotonic()
    nodes = _fine_tune(setting, watch, grid, run)
    run.fine_tune_s = time.monotonic() - started_s
    sums = {name: _sums(setting, name) for name in setting.plans}
    least = max(each.least_owners for each in sums.values())
    if len(nodes) < least:
        reasons = "; ".join(f"{name} ({lost.reason})" for name, lost in run.missing.items())
        raise TooFewOwners(
            f"{len(nodes)} owner(s) have a model, a sum needs {least}. Missing: {reasons}",
            hint="mend what they report, then run the same command again",
        )
    for name, plan in setting.plans.items():
        started_s = time.monotonic()
        show = watch.merging(name, len(exchanges(plan)[0]))
        strategy = Merge(plan, setting.base, out[name], nodes, sums[name], show)
        strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds, timeout=_TIMEOUT_S)
        run.jobs[name] = strategy.record
        run.method_s[name] = time.monotonic() - started_s


def _sums(setting: Setting, method: str) -> Sums:
    plan = setting.plans[method]
    if setting.roster is None:
        return OpenSums(plan)
    expires = round(time.time() + _TIMEOUT_S)
    folder = setting.work / "spool"
    return SecureSums(plan, setting.roster, setting.layouts[method], folder, expires)


def _fine_tune(setting: Setting, watch: Watch, grid: Any, run: FlowerRun) -> dict[int, str]:
    """Owner by node id, of all that have a model now."""
    while len(list(grid.get_node_ids())) < len(setting.pupils):
        watch.pause()
    requests = [
        Message(RecordDict(), dst_node_id=node, message_type=f"query.{_FINE_TUNE}")
        for node in sorted(grid.get_node_ids())
    ]
    watching = StreamingGrid(grid, lambda: _show(setting.pupils, watch))
    nodes: dict[int, str] = {}
    died = "its process died"
    for reply in watching.send_and_receive(requests):
        if reply.has_error():
            lines = (reply.error.reason or "no reason given").strip().splitlines()
            died = f"its process failed: {lines[-1]}"
            continue
        answer = reply.content.config_records["reply"]
        name = str(answer["owner"])
        if "error" in answer:
            run.missing[name] = Drop(FINE_TUNING, str(answer["error"]))
        else:
            nodes[reply.metadata.src_node_id] = name
    for pupil in setting.pupils:
        if pupil.name not in nodes.values() and pupil.name not in run.missing:
            run.missing[pupil.name] = Drop(FINE_TUNING, died)
    return nodes


def _show(pupils: Iterable[Pupil], watch: Watch) -> None:
    for pupil in pupils:
        with suppress(OSError, ValueError):  # not there yet, or half written
            done, total = (pupil.folder / "progress").read_text().split()
            watch.step(f"fine-tune: {pupil.name}", int(done), int(total))
    watch.pause()
