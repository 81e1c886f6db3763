"""A Flower Strategy whose rounds are the exchanges of a merge job.

A round asks every owner for one thing (see `blindmerge_server.exchanges`) and brings it the
merged tensors that it lacks; totals are solved and written as soon as they are known. The last
merged tensors go with the request to evaluate. Use it as any strategy:

    strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds)
"""

import math
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import PeerInvalid, TooFewOwners
from blindmerge.merge import LayerReport
from blindmerge.plan import Plan
from blindmerge.tasks import METRICS, Task
from blindmerge.wire import from_wire, to_wire
from blindmerge_server.exchanges import Exchange, Kind, exchanges, in_words
from blindmerge_server.rounds import Total, solve_block
from blindmerge_server.sums import Proof, Sums

__all__ = ["EVALUATION", "Drop", "JobRecord", "Merge"]

_LONGEST_REASON = 300
_NO_BLOCK = -1  # of a request that asks for the statistic of none
EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True)
class Drop:
    """An owner left the job. step: what it was asked for; reason: as far as it is known."""

    step: str
    reason: str


@dataclass(slots=True)
class JobRecord:
    """What happened in a job; grows as it runs.

    owners: who is in the sum, by block.   layers: what the solves did.
    proofs: of the sums under masks.   seconds: of each exchange, by what it asked for.
    sent_bytes: numbers that each owner sent, in bytes.   dropped: owners that left.
    scores: what each owner published of the merged model.
    """

    owners: dict[str, tuple[str, ...]] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    proofs: Sequence[Proof] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    sent_bytes: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, Drop] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


class Merge(Strategy):
    """Runs one plan over all nodes of a grid and writes the merged checkpoint.

    plan, base: what is merged.   out: folder of the merged checkpoint.
    nodes: owner by node id. An owner that fails, refuses or breaks the plan is out for the
    rest of the job; the job goes on while enough are left, else TooFewOwners is raised.
    sums: `SecureSums`, or `OpenSums` if the plan has no masks. The job goes on where they are.
    record: of a job that goes on.
    on_exchange: called after each exchange with how many are done.
    announced: what requests hold as the plan; its bytes, unless they go out signed.
    """

    def __init__(
        self,
        plan: Plan,
        base: Checkpoint,
        out: Path,
        nodes: dict[int, str],
        sums: Sums,
        on_exchange: Callable[[int], None] = lambda _: None,
        record: JobRecord | None = None,
        announced: bytes | None = None,
    ) -> None:
        self.plan = plan
        self._announced = announced or plan.encode()
        self.record = record or JobRecord()
        self.record.proofs = sums.proofs
        self._base = base
        self._writer = CheckpointWriter(out, base, plan.blocks)
        self._interim = CheckpointWriter(out.with_name(f"{out.name}.interim"), base, plan.blocks)
        self._nodes = {n: name for n, name in nodes.items() if name not in self.record.dropped}
        self._asked: dict[int, str] = {}
        self._sums = sums
        steps, self._last_delivery = exchanges(plan)
        self._exchanges = steps[sums.closed :]
        self._on_exchange = on_exchange
        self._started_s = time.monotonic()

    @property
    def rounds(self) -> int:
        """How many rounds the job takes, or what is left of it."""
        return max(1, len(self._exchanges))  # the last one also asks for scores

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The requests of the exchange; owners whose answers are here already get none."""
        del arrays, config, grid
        self._started_s = time.monotonic()
        self._solve(self._sums.totals())
        if not self._exchanges:
            return []
        exchange = self._exchanges[server_round - 1]
        answered = self._sums.answered(exchange)
        for owner, size_bytes in answered.items():
            self._count(owner, size_bytes)
        return self._requests("train", exchange.block, exchange.deliver, exchange, answered)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Takes the replies as they come; solves and writes what is known after them."""
        for exchange in self._exchanges[server_round - 1 : server_round]:
            step = in_words(self.plan, exchange)
            for owner, content in self._accepted(step, replies):
                self._take(exchange, owner, content)
                del content  # or it would stay in memory beside the next one
            if exchange.kind is not Kind.DELIVERY:  # all is summed by then
                self._check_enough()
            # Once before and once with the solve: the sums keep the record when they close.
            self.record.seconds[step] = time.monotonic() - self._started_s
            self._solve(self._sums.close(exchange))
            self.record.seconds[step] = time.monotonic() - self._started_s
        if server_round == self.rounds:
            self._writer.finish()
            shutil.rmtree(self._interim.path, ignore_errors=True)
        self._on_exchange(self._sums.closed)
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """After the last exchange: the rest of the model for every owner that is left."""
        del arrays, config, grid
        if server_round < self.rounds:
            return []
        return self._requests("evaluate", None, self._last_delivery, None, {})

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keeps the scores that owners published."""
        if server_round == self.rounds:
            for owner, content in self._accepted(EVALUATION, replies):
                try:
                    scores = _scores(
                        self.plan.task, content.metric_records.get("scores", MetricRecord())
                    )
                except PeerInvalid as error:
                    self._drop(owner, EVALUATION, str(error))
                    continue
                if scores:
                    self.record.scores[owner] = scores
        return None

    def summary(self) -> None:
        """Nothing: the caller shows the job."""

    def _solve(self, totals: Iterable[Total]) -> None:
        for total in totals:
            self.record.layers += solve_block(
                self.plan, total, self._base, self._writer, self._interim
            )
            self.record.owners[self.plan.blocks[total.block].name] = total.owners

    def _requests(
        self,
        kind: str,
        block: int | None,
        deliver: Sequence[int],
        exchange: Exchange | None,
        answered: Container[str],
    ) -> list[Message]:
        # A list, which costs nothing: they share the tensors. Flower's grid over HTTP goes
        # through them twice, and would send nothing of a generator.
        asks = exchange is not None and exchange.kind is not Kind.DELIVERY
        revised = asks and self.plan.method.revises
        merged = _tensors(self._interim if revised else self._writer, deliver)
        requests = []
        self._asked = {n: owner for n, owner in self._nodes.items() if owner not in answered}
        for node, owner in sorted(self._asked.items()):
            request = ConfigRecord(
                {
                    "plan": self._announced,
                    "block": _NO_BLOCK if block is None else block,
                    "messages": [*(self._sums.messages(exchange, owner) if exchange else ())],
                }
            )
            content = RecordDict({"request": request, "merged": merged})
            requests.append(Message(content, dst_node_id=node, message_type=kind))
        return requests

    def _take(self, exchange: Exchange, owner: str, content: RecordDict) -> None:
        # Not `content.array_records`, nor left in there: these refer to themselves and would keep
        # the arrays until Python's garbage collection, which counts objects and not bytes.
        record = content.pop("answer", None)
        if not isinstance(record, ArrayRecord):
            record = ArrayRecord()
        try:
            answer = {
                name: from_wire(array.dtype, tuple(array.shape), array.stype, array.data)
                for name, array in record.items()
            }
            self._sums.receive(exchange, owner, answer)
        except PeerInvalid as error:
            self._drop(owner, in_words(self.plan, exchange), str(error))
            return
        self._count(owner, sum(len(array.data) for array in record.values()))

    def _count(self, owner: str, size_bytes: int) -> None:
        self.record.sent_bytes[owner] = self.record.sent_bytes.get(owner, 0) + size_bytes

    def _accepted(self, step: str, replies: Iterable[Message]) -> Iterator[tuple[str, RecordDict]]:
        """Owner and content of each good reply; everybody else is dropped."""
        silent = dict(self._asked)
        for reply in replies:
            owner = silent.pop(reply.metadata.src_node_id, None)
            if owner is None:
                continue
            refusal = None if reply.has_error() else reply.content.config_records.get("refusal")
            if reply.has_error():
                self._drop(owner, step, _failure(reply.error.code))
            elif refusal is not None:
                self._drop(owner, step, f"{refusal.get('kind')!s}: {refusal.get('reason')!s}")
            else:
                yield owner, reply.content
            del reply
        for owner in silent.values():
            self._drop(owner, step, "no readable answer in time")

    def _drop(self, owner: str, step: str, reason: str) -> None:
        self._nodes = {node: name for node, name in self._nodes.items() if name != owner}
        # A peer chose these words: short, and no control characters on a person's terminal.
        shown = "".join(c if c.isprintable() else "?" for c in reason[:_LONGEST_REASON])
        self.record.dropped[owner] = Drop(step, shown)

    def _check_enough(self) -> None:
        if len(self._nodes) < self._sums.least_owners:
            reasons = "; ".join(
                f"{owner} ({drop.reason})" for owner, drop in sorted(self.record.dropped.items())
            )
            raise TooFewOwners(
                f"{len(self._nodes)} owner(s) are left, a sum needs {self._sums.least_owners}. "
                f"Missing: {reasons}",
                hint="mend what they report, then run the job again",
            )


def _failure(code: int) -> str:
    if code == ErrorCode.INVALID_FAB:
        return "its blindmerge takes other bundles than the server's: compare the versions"
    return f"the node failed (code {code})"


def _tensors(writer: CheckpointWriter, blocks: Sequence[int]) -> ArrayRecord:
    """The merged tensors of these blocks, as they were written."""
    return ArrayRecord(
        {
            name: Array(*to_wire(array))
            for block in blocks
            for name, array in writer.read(block).items()
        }
    )


def _scores(task: Task, record: MetricRecord) -> dict[str, float]:
    """Published scores, perhaps none. Raises PeerInvalid for others than an owner has."""
    ranges = {metric.id: (metric.least, metric.most) for metric in METRICS[task]}
    ranges["examples"] = (0.0, math.inf)
    scores = {}
    for name, value in record.items():
        low, high = ranges.get(name, (math.inf, -math.inf))
        if isinstance(value, list) or not low <= value <= high or math.isinf(value):
            raise PeerInvalid(f"the scores are not {', '.join(ranges)}")
        scores[name] = float(value)
    if scores and scores.keys() != ranges.keys():
        raise PeerInvalid(f"the scores are not {', '.join(ranges)}")
    return scores
