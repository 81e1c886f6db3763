"""Whole jobs of the Flower strategy over a grid in memory, with owners that misbehave."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.error import Error

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import Interrupted, TooFewOwners
from blindmerge.merge import METHODS
from blindmerge.statistic import size_bytes
from blindmerge.wire import to_wire
from blindmerge_client.owner import Owner
from blindmerge_server.rounds import PhaseSum, solve_phase
from blindmerge_server.strategy import Merge, StreamingGrid
from support.grids import MemoryGrid, Node, node_of, request_of
from support.jobs import Job, make_job
from support.pico import pico_examples

NAMES = {11: "anna", 12: "bert", 13: "cleo"}
WAITING_S = 1000.0  # nobody waits: nodes answer when they are asked


def honest(job: Job) -> dict[int, Node]:
    return {
        node: node_of(
            Owner(
                NAMES[node],
                job.base,
                job.owners[number],
                pico_examples(12, seed=number),
                job.folder / NAMES[node],
                pico_examples(5, seed=50 + number),
            )
        )
        for number, node in enumerate(sorted(NAMES))
    }


def run(
    job: Job,
    nodes: dict[int, Node],
    pause: Callable[[], None] | None = None,
    grid: MemoryGrid | None = None,
) -> Merge:
    """Runs the job to its end; nodes that never answer are given up after a few looks."""
    strategy = Merge(job.plan, Checkpoint(job.base), job.folder / "out", NAMES)
    streaming = Impatient(grid or MemoryGrid(nodes), pause or (lambda: None))
    rounds = len(job.plan.phases)
    strategy.start(streaming, ArrayRecord(), num_rounds=rounds, timeout=WAITING_S)  # type: ignore[arg-type]
    return strategy


class Impatient(StreamingGrid):
    """Ends waiting after three looks in which nothing came, without a clock."""

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        pause, looks = self._pause, [0]

        def look() -> None:
            pause()
            looks[0] += 1
            if looks[0] == 3:
                raise TimeoutError

        self._pause = look
        try:
            yield from super().send_and_receive(messages, timeout=timeout)
        except TimeoutError:
            return
        finally:
            self._pause = pause


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, owners=3, rows_factor=0.0)


def direct(job: Job, present: Sequence[Sequence[int]]) -> str:
    """Hash of the checkpoint without any transport.   present: owners of each phase."""
    base = Checkpoint(job.base)
    writer = CheckpointWriter(job.folder / "direct", base)
    for phase, owners in enumerate(present):
        phase_sum = PhaseSum(job.plan, phase)
        for owner in owners:
            phase_sum.add(str(owner), job.session(owner).contribute(phase).arrays)
        solve_phase(job.plan, phase, phase_sum, base, writer)
    writer.finish()
    return Checkpoint(job.folder / "direct").sha256


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_whole_job_is_the_direct_computation_bit_for_bit(method: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, owners=3, method=method)
    strategy = run(job, honest(job))
    assert Checkpoint(tmp_path / "out").sha256 == direct(job, [(0, 1, 2)] * 4)
    record = strategy.record
    assert [phase.block for phase in record.phases] == [block.name for block in job.plan.phases]
    assert {phase.owners for phase in record.phases} == {("anna", "bert", "cleo")}
    assert record.missing == {}
    assert len(record.seconds) == 4
    sent = sum(size_bytes(job.plan.method.schema_of(block)) for block in job.plan.phases)
    assert record.sent_bytes == dict.fromkeys(NAMES.values(), sent)
    # Every owner has the same merged checkpoint, and its scores are those of this one.
    for number, name in enumerate(sorted(NAMES.values())):
        folder = tmp_path / name / job.plan.sha256 / "merged"
        assert Checkpoint(folder).sha256 == Checkpoint(tmp_path / "out").sha256
        owner = Owner(
            name,
            job.base,
            job.owners[number],
            pico_examples(12, seed=number),
            tmp_path / name,
            pico_examples(5, seed=50 + number),
        )
        assert record.scores[name] == owner.evaluate(job.plan)


def test_phases_are_told_as_they_end(job: Job) -> None:
    ended: list[int] = []
    strategy = Merge(job.plan, Checkpoint(job.base), job.folder / "out", NAMES, ended.append)
    grid: Any = StreamingGrid(MemoryGrid(honest(job)), lambda: None)
    strategy.start(grid, ArrayRecord(), num_rounds=4)
    assert ended == [0, 1, 2, 3]


def test_flowers_own_grid_gives_the_same(job: Job) -> None:
    strategy = Merge(job.plan, Checkpoint(job.base), job.folder / "out", NAMES)
    strategy.start(MemoryGrid(honest(job)), ArrayRecord(), num_rounds=4)
    assert Checkpoint(job.folder / "out").sha256 == direct(job, [(0, 1, 2)] * 4)


# What one owner can do wrong. Each takes the honest reply of phase 1 and gives its own.


def reply_with(request: Message, **records: Any) -> list[Message]:
    return [Message(RecordDict(dict(records)), reply_to=request)]


def refuses(request: Message, _reply: Message) -> list[Message]:
    refusal = ConfigRecord({"kind": "PolicyRefused", "reason": "see the owner's log"})
    return reply_with(request, refusal=refusal)


def odd_refusal(request: Message, _reply: Message) -> list[Message]:
    return reply_with(request, refusal=ConfigRecord({"reason": "\x1b[2J\r\n" + "x" * 10**6}))


def fails(request: Message, _reply: Message) -> list[Message]:
    return [Message(Error(code=3, reason="a traceback with a secret"), reply_to=request)]


def is_silent(_request: Message, _reply: Message) -> list[Message]:
    return []


def sends_nothing(request: Message, _reply: Message) -> list[Message]:
    return reply_with(request)


def sends_numbers(request: Message, reply: Message, change: Any) -> list[Message]:
    statistic = dict(reply.content.array_records["statistic"])
    name = next(name for name in statistic if name.endswith(":gram"))
    statistic[name] = change(statistic[name])
    return reply_with(request, statistic=ArrayRecord(statistic))


def sends_nan(request: Message, reply: Message) -> list[Message]:
    return sends_numbers(request, reply, lambda a: Array(*to_wire(np.full(a.shape, np.nan))))


def sends_a_wrong_shape(request: Message, reply: Message) -> list[Message]:
    return sends_numbers(request, reply, lambda _: Array(*to_wire(np.zeros((2, 2)))))


def sends_a_lying_shape(request: Message, reply: Message) -> list[Message]:
    return sends_numbers(request, reply, lambda a: Array(a.dtype, (2**40,) * 300, a.stype, a.data))


def sends_float32(request: Message, reply: Message) -> list[Message]:
    return sends_numbers(
        request, reply, lambda a: Array(*to_wire(np.zeros(a.shape, dtype=np.float32)))
    )


def sends_flowers_form(request: Message, reply: Message) -> list[Message]:
    return sends_numbers(request, reply, lambda a: Array(np.zeros(a.shape)))


def sends_names_of_its_own(request: Message, reply: Message) -> list[Message]:
    statistic = dict(reply.content.array_records["statistic"])
    statistic["\x1b]0;title\x07" + "x" * 10**5] = Array(*to_wire(np.zeros(1)))
    return reply_with(request, statistic=ArrayRecord(statistic))


def cannot_be_read(_request: Message, _reply: Message) -> list[Message]:
    raise ValueError("Flower could not inflate it")


WRONGS = [
    (refuses, "PolicyRefused: see the owner's log"),
    (odd_refusal, r"None: \?\[2J\?\?x+"),
    (fails, r"the node failed \(code 3\)"),
    (is_silent, "no readable answer in time"),
    (cannot_be_read, "no readable answer in time"),
    (sends_nothing, "missing or extra arrays"),
    (sends_nan, "NaN or infinity"),
    (sends_a_wrong_shape, r"float64\[2, 2\], the plan says"),
    (sends_a_lying_shape, "impossible shape"),
    (sends_float32, "float32.*the plan says float64"),
    (sends_flowers_form, "serialised as"),
    (sends_names_of_its_own, "missing or extra arrays"),
]


def misbehaving(node: Node, wrong: Any, phase: int = 1, kind: str = "train") -> Node:
    def answer(request: Message) -> Sequence[Message]:
        (reply,) = node(request)
        asked = request.content.config_records["request"]["phase"]
        if (asked, request.metadata.message_type) == (phase, kind):
            replies: list[Message] = wrong(request, reply)
            return replies
        return [reply]

    return answer


@pytest.mark.parametrize(("wrong", "reason"), WRONGS)
def test_an_owner_that_does_wrong_is_out_and_the_others_go_on(
    job: Job, wrong: Any, reason: str
) -> None:
    nodes = honest(job)
    nodes[12] = misbehaving(nodes[12], wrong)
    grid = MemoryGrid(nodes)
    record = run(job, nodes, grid=grid).record
    assert record.missing.keys() == {"bert"}
    missing = record.missing["bert"]
    assert missing.phase == "bert.encoder.layer.0"
    assert re.search(reason, missing.reason), missing.reason
    assert len(missing.reason) <= 300
    assert missing.reason.isprintable()
    assert "secret" not in missing.reason
    assert [phase.owners for phase in record.phases] == [
        ("anna", "bert", "cleo"),
        *[("anna", "cleo")] * 3,
    ]
    assert Checkpoint(job.folder / "out").sha256 == direct(job, [(0, 1, 2)] + [(0, 2)] * 3)
    # It was not asked again, and what it sent before counts.
    assert record.scores.keys() == {"anna", "cleo"}
    first = size_bytes(job.plan.method.schema_of(job.plan.phases[0]))
    assert record.sent_bytes["bert"] == first
    assert grid.pulled.count(12) <= 2


def test_whoever_answers_twice_counts_once(job: Job) -> None:
    nodes = honest(job)
    nodes[12] = misbehaving(nodes[12], lambda _request, reply: [reply, reply])
    record = run(job, nodes).record
    assert record.missing == {}
    assert Checkpoint(job.folder / "out").sha256 == direct(job, [(0, 1, 2)] * 4)


def test_a_node_that_nobody_knows_is_not_heard(job: Job) -> None:
    def forged(_request: Message, reply: Message) -> list[Message]:
        stranger = request_of({"phase": 0})
        stranger.metadata.dst_node_id = 99
        return [Message(reply.content, reply_to=stranger), reply]

    nodes = honest(job)
    nodes[12] = misbehaving(nodes[12], forged)
    record = run(job, nodes).record
    assert record.missing == {}
    assert {phase.owners for phase in record.phases} == {("anna", "bert", "cleo")}
    assert Checkpoint(job.folder / "out").sha256 == direct(job, [(0, 1, 2)] * 4)


def test_with_one_owner_left_the_job_ends_and_says_why(job: Job) -> None:
    nodes = honest(job)
    nodes[11] = misbehaving(nodes[11], sends_nan, phase=1)
    nodes[13] = misbehaving(nodes[13], refuses, phase=1)
    with pytest.raises(TooFewOwners) as raised:
        run(job, nodes)
    message = raised.value.message
    assert "1 owner(s) are left, a sum needs 2" in message
    assert "anna (array" in message
    assert "cleo (PolicyRefused: see the owner's log)" in message
    assert raised.value.hint
    # The half of a result does not load.
    assert not (job.folder / "out" / "config.json").exists()


SCORES = {"accuracy": 0.5, "macro_f1": 0.5, "examples": 5}


@pytest.mark.parametrize(
    "scores",
    [
        SCORES | {"accuracy": float("nan")},
        SCORES | {"accuracy": float("inf")},
        SCORES | {"accuracy": 1.5},
        SCORES | {"macro_f1": -0.1},
        SCORES | {"examples": float("inf")},
        SCORES | {"accuracy": [0.5]},
        SCORES | {"\x1b[2J": 0.5},
        {"accuracy": 0.5},
    ],
)
def test_scores_that_are_none_are_not_shown(job: Job, scores: dict[str, Any]) -> None:
    def lies(request: Message, _reply: Message) -> list[Message]:
        return reply_with(request, scores=MetricRecord(scores))

    nodes = honest(job)
    nodes[12] = misbehaving(nodes[12], lies, phase=3, kind="evaluate")
    record = run(job, nodes).record
    assert record.scores.keys() == {"anna", "cleo"}
    assert "the scores are not" in record.missing["bert"].reason


def test_an_owner_that_publishes_nothing_is_not_missing(job: Job) -> None:
    nodes = honest(job)
    nodes[12] = misbehaving(
        nodes[12],
        lambda request, _: reply_with(request, scores=MetricRecord({})),
        phase=3,
        kind="evaluate",
    )
    record = run(job, nodes).record
    assert record.scores.keys() == {"anna", "cleo"}
    assert record.missing == {}


def test_a_pause_that_raises_stops_the_job(job: Job) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    nodes = honest(job)
    nodes[12] = misbehaving(nodes[12], is_silent)
    with pytest.raises(Interrupted):
        run(job, nodes, pause=stop)


class Counted(bytes):
    """The numbers of a statistic; counts how many are alive."""

    alive = 0

    def __new__(cls, data: bytes) -> "Counted":
        cls.alive += 1
        return super().__new__(cls, data)

    def __del__(self) -> None:
        type(self).alive -= 1


def test_memory_holds_the_sum_and_one_statistic(tmp_path: Path) -> None:
    job = make_job(tmp_path, owners=3, method="average")
    inner, alive = honest(job), []

    def counted(node: Node) -> Node:
        def answer(request: Message) -> list[Message]:
            phase = request.content.config_records["request"]["phase"]
            (reply,) = node(request)
            alive.append((request.metadata.message_type, phase, Counted.alive))
            if request.metadata.message_type == "train":
                # Not by `array_records`, whose dictionary refers to itself.
                statistic = reply.content["statistic"]
                assert isinstance(statistic, ArrayRecord)
                for array in statistic.values():
                    array.__dict__["data"] = Counted(array.data)
            return [reply]

        return answer

    # No road through bytes, which would make new ones.
    grid = MemoryGrid(
        {number: counted(node) for number, node in inner.items()}, road=lambda message: message
    )
    run(job, {}, grid=grid)
    for phase, block in enumerate(job.plan.phases):
        arrays = len(job.plan.method.schema_of(block))
        # When the second owner's comes, the first one's is the sum; when the third one's comes,
        # the sum is the server's own and both are gone.
        assert [count for kind, p, count in alive if (kind, p) == ("train", phase)] == [
            0,
            arrays,
            0,
        ]
    assert Counted.alive == 0
