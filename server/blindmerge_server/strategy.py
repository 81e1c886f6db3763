"""A Flower Strategy whose rounds are the phases of a merge job.

A round sends the plan, the number of the phase and the merged tensors of the phase before;
owners reply with their statistic of the phase, and the sum is solved. The last merged tensors
are delivered with the request to evaluate. Use it as any strategy:

    strategy.start(grid, ArrayRecord(), num_rounds=len(plan.phases))
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from blindmerge.checkpoint import Checkpoint, CheckpointWriter, Tensors
from blindmerge.errors import PeerInvalid, TooFewOwners
from blindmerge.plan import Plan
from blindmerge.wire import from_wire, to_wire
from blindmerge_server.rounds import MIN_OWNERS, MergedPhase, PhaseSum, solve_phase

__all__ = ["JobRecord", "Merge", "Missing", "StreamingGrid"]

_log = logging.getLogger("blindmerge.server")
_LONGEST_REASON = 300
_SCORES = {"accuracy": 1.0, "macro_f1": 1.0, "examples": math.inf}  # what is largest


@dataclass(frozen=True, slots=True)
class Missing:
    """An owner that left the job. phase: the block's name; reason: as far as it is known."""

    phase: str
    reason: str


@dataclass(slots=True)
class JobRecord:
    """What happened in a job; grows as it runs.

    sent_bytes: numbers that each owner sent, in bytes.   seconds: per phase.
    scores: what each owner published of the merged model.
    """

    phases: list[MergedPhase] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sent_bytes: dict[str, int] = field(default_factory=dict)
    missing: dict[str, Missing] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


class Merge(Strategy):
    """Runs one plan over all nodes of a grid and writes the merged checkpoint.

    plan, base: what is merged.   out: folder of the merged checkpoint.
    nodes: owner by node id. An owner that fails, refuses or breaks the plan is out for the
    rest of the job; the job goes on while MIN_OWNERS are left, else TooFewOwners is raised.
    on_phase: called after each phase with its number.
    """

    def __init__(
        self,
        plan: Plan,
        base: Checkpoint,
        out: Path,
        nodes: dict[int, str],
        on_phase: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.plan = plan
        self.record = JobRecord()
        self._base = base
        self._writer = CheckpointWriter(out, base)
        self._nodes = dict(nodes)
        self._on_phase = on_phase
        self._started_s = time.monotonic()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The requests of phase `server_round - 1`; `arrays` are the phase before's tensors."""
        del config, grid
        self._started_s = time.monotonic()
        return self._requests("train", server_round - 1, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Adds the replies as they come and solves the phase."""
        phase = server_round - 1
        phase_sum = PhaseSum(self.plan, phase)
        for owner, content in self._accepted(phase, replies):
            self._add(phase_sum, owner, phase, content)
            del content  # or it would stay in memory beside the next one
        self._check_enough()
        merged = solve_phase(self.plan, phase, phase_sum, self._base, self._writer)
        if phase == len(self.plan.phases) - 1:
            self._writer.finish()
        self.record.phases.append(merged)
        self.record.seconds.append(time.monotonic() - self._started_s)
        self._on_phase(phase)
        return _record(merged.tensors), None

    def _add(self, phase_sum: PhaseSum, owner: str, phase: int, content: RecordDict) -> None:
        # Not `content.array_records`, nor left in there: these refer to themselves and would keep
        # the arrays until Python's garbage collection, which counts objects and not bytes.
        record = content.pop("statistic", None)
        if not isinstance(record, ArrayRecord):
            record = ArrayRecord()
        try:
            phase_sum.add(owner, {name: _numpy(array) for name, array in record.items()})
        except PeerInvalid as error:
            self._drop(owner, phase, str(error))
            return
        sent = sum(len(array.data) for array in record.values())
        self.record.sent_bytes[owner] = self.record.sent_bytes.get(owner, 0) + sent

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """After the last phase: its merged tensors for every owner that is left."""
        del config, grid
        last = len(self.plan.phases)
        return self._requests("evaluate", last - 1, arrays) if server_round == last else []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keeps the scores that owners published."""
        if server_round == len(self.plan.phases):
            for owner, content in self._accepted(server_round - 1, replies):
                try:
                    scores = _scores(content.metric_records.get("scores", MetricRecord()))
                except PeerInvalid as error:
                    self._drop(owner, server_round - 1, str(error))
                    continue
                if scores:
                    self.record.scores[owner] = scores
        return None

    def summary(self) -> None:
        """Nothing: the caller shows the job."""

    def _requests(self, kind: str, phase: int, merged: ArrayRecord) -> list[Message]:
        # A list, which costs nothing: they share the tensors. Flower's grid over HTTP goes
        # through them twice, and would send nothing of a generator.
        content = RecordDict(
            {
                "request": ConfigRecord({"plan": self.plan.encode(), "phase": phase}),
                "merged": merged,
            }
        )
        return [
            Message(content, dst_node_id=node, message_type=kind) for node in sorted(self._nodes)
        ]

    def _accepted(self, phase: int, replies: Iterable[Message]) -> Iterator[tuple[str, RecordDict]]:
        """Owner and content of each good reply; everybody else is dropped."""
        silent = dict(self._nodes)
        for reply in replies:
            owner = silent.pop(reply.metadata.src_node_id, None)
            if owner is None:
                continue
            refusal = None if reply.has_error() else reply.content.config_records.get("refusal")
            if reply.has_error():
                self._drop(owner, phase, f"the node failed (code {reply.error.code})")
            elif refusal is not None:
                self._drop(owner, phase, f"{refusal.get('kind')!s}: {refusal.get('reason')!s}")
            else:
                yield owner, reply.content
            del reply
        for owner in silent.values():
            self._drop(owner, phase, "no readable answer in time")

    def _drop(self, owner: str, phase: int, reason: str) -> None:
        self._nodes = {node: name for node, name in self._nodes.items() if name != owner}
        # A peer chose these words: short, and no control characters on a person's terminal.
        shown = "".join(c if c.isprintable() else "?" for c in reason[:_LONGEST_REASON])
        self.record.missing[owner] = Missing(self.plan.phases[phase].name, shown)

    def _check_enough(self) -> None:
        if len(self._nodes) < MIN_OWNERS:
            reasons = "; ".join(
                f"{owner} ({missing.reason})"
                for owner, missing in sorted(self.record.missing.items())
            )
            raise TooFewOwners(
                f"{len(self._nodes)} owner(s) are left, a sum needs {MIN_OWNERS}. "
                f"Missing: {reasons}",
                hint="mend what they report, then run the job again",
            )


class StreamingGrid:
    """A grid whose replies can be added one by one as they come, and that can be stopped.

    Flower's own grid gathers all replies first: one block of every owner in memory at once.
    pause: called between looks for replies; waits a little, shows progress, and may raise
    to stop the job.
    """

    def __init__(self, grid: Grid, pause: Callable[[], None]) -> None:
        self._grid = grid
        self._pause = pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Sends now; yields replies as they come, until all are there or the time is over.

        timeout: in seconds; None waits for ever.
        """
        # Flower has no id for a message that it could not send; nobody will answer that one.
        pending = [sent for sent in self._grid.push_messages(list(messages)) if sent]
        return self._replies(pending, time.monotonic() + (math.inf if timeout is None else timeout))

    def _replies(self, pending: list[str], deadline_s: float) -> Iterator[Message]:
        while pending and time.monotonic() < deadline_s:
            for sent in tuple(pending):
                # One by one: asked for all at once, Flower loads all that are there.
                for reply in self._pull(sent, pending):
                    if sent in pending:
                        pending.remove(sent)
                    yield reply
                    del reply
            if pending:
                self._pause()

    def _pull(self, sent: str, pending: list[str]) -> Iterable[Message]:
        """The reply to a message, if it is there; a reply that Flower cannot read is none."""
        try:
            return self._grid.pull_messages([sent])
        except (AttributeError, LookupError, TypeError, ValueError):  # not of the network's kind
            _log.exception("a reply cannot be read")
            pending.remove(sent)
            return ()


def _scores(record: MetricRecord) -> dict[str, float]:
    """Published scores, perhaps none. Raises PeerInvalid for others than an owner has."""
    scores = {}
    for name, value in record.items():
        if name not in _SCORES or isinstance(value, list) or not 0 <= value <= _SCORES[name]:
            raise PeerInvalid("the scores are not accuracy, macro_f1 and the number of examples")
        scores[name] = float(value)
    if scores and (scores.keys() != _SCORES.keys() or math.isinf(scores["examples"])):
        raise PeerInvalid("the scores are not accuracy, macro_f1 and the number of examples")
    return scores


def _numpy(array: Array) -> npt.NDArray[Any]:
    return from_wire(array.dtype, tuple(array.shape), array.stype, array.data)


def _record(tensors: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(*to_wire(array)) for name, array in tensors.items()})
