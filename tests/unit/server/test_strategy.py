"""Whole jobs of the Flower strategy over a grid in memory, with owners that misbehave.

The plans have no masks, so that every number can be followed; for masks see test_sums.py.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import Interrupted, TooFewOwners
from blindmerge.merge import METHODS
from blindmerge.statistic import size_bytes
from blindmerge.wire import to_wire
from blindmerge_server.grid import StreamingGrid
from blindmerge_server.rounds import BlockSum, solve_block
from support.grids import (
    FIRST_NODE,
    MemoryGrid,
    Node,
    fails,
    honest,
    is_silent,
    merge_of,
    misbehaving,
    refuses,
    reply_with,
    request_of,
    run_job,
)
from support.jobs import Job, make_job

OWNERS = ("anna", "bert", "cleo")
ANNA, BERT, CLEO = range(FIRST_NODE, FIRST_NODE + 3)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, owners=3, rows_factor=0.0)


def direct(job: Job, present: Sequence[Sequence[int]]) -> str:
    """Hash of the checkpoint without any transport.   present: owners of each block."""
    base = Checkpoint(job.base)
    writer = CheckpointWriter(job.folder / "direct", base, job.plan.blocks)
    interim = CheckpointWriter(job.folder / "interim", base, job.plan.blocks)
    sessions = [job.session(owner) for owner in range(len(job.owners))]
    for block, owners in enumerate(present):
        block_sum = BlockSum(job.plan, block)
        for owner in owners:
            block_sum.add(str(owner), sessions[owner].contribute(block).arrays)
        solve_block(job.plan, block_sum.total(), base, writer, interim)
        for session in sessions:
            session.receive((interim if job.plan.method.revises else writer).read(block))
    writer.finish()
    return Checkpoint(job.folder / "direct").sha256


@pytest.mark.parametrize(
    ("method", "options"),
    [*((name, {}) for name in sorted(METHODS)), ("progressive", {"fisher_share": 0.5})],
)
def test_a_whole_job_is_the_direct_computation_bit_for_bit(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    job = make_job(tmp_path, owners=3, method=method, **options)
    blocks = job.plan.blocks
    record = run_job(job, MemoryGrid(honest(job))).record
    assert Checkpoint(tmp_path / "out").sha256 == direct(job, [(0, 1, 2)] * len(blocks))
    assert record.owners == {block.name: OWNERS for block in blocks}
    assert record.dropped == {}
    assert record.proofs == []
    assert {f"statistic: {block.name}" for block in blocks} <= record.seconds.keys()
    sent = sum(size_bytes(job.plan.method.schema_of(block)) for block in blocks)
    assert record.sent_bytes == dict.fromkeys(OWNERS, sent)
    # Every owner has the same merged checkpoint, and its scores are those of this one.
    for number, name in enumerate(OWNERS):
        folder = tmp_path / name / job.plan.sha256 / "merged"
        assert Checkpoint(folder).sha256 == Checkpoint(tmp_path / "out").sha256
        assert record.scores[name] == job.owner(number).evaluate(job.plan)


def test_exchanges_are_told_as_they_end(job: Job) -> None:
    ended: list[int] = []
    strategy = merge_of(job, on_exchange=ended.append)
    grid: Any = StreamingGrid(MemoryGrid(honest(job)), lambda: None)
    strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds)
    assert ended == [1, 2, 3, 4]


def test_flowers_own_grid_gives_the_same(job: Job) -> None:
    strategy = merge_of(job)
    strategy.start(MemoryGrid(honest(job)), ArrayRecord(), num_rounds=strategy.rounds)
    assert Checkpoint(job.folder / "out").sha256 == direct(job, [(0, 1, 2)] * 4)


# What one owner can do wrong. Each takes the honest reply of block 1 and gives its own.


def odd_refusal(request: Message, _reply: Message) -> list[Message]:
    return reply_with(request, refusal=ConfigRecord({"reason": "\x1b[2J\r\n" + "x" * 10**6}))


def sends_nothing(request: Message, _reply: Message) -> list[Message]:
    return reply_with(request)


def sends_numbers(request: Message, reply: Message, change: Any) -> list[Message]:
    statistic = dict(reply.content.array_records["answer"])
    name = next(name for name in statistic if name.endswith(":gram"))
    statistic[name] = change(statistic[name])
    return reply_with(request, answer=ArrayRecord(statistic))


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
    statistic = dict(reply.content.array_records["answer"])
    statistic["\x1b]0;title\x07" + "x" * 10**5] = Array(*to_wire(np.zeros(1)))
    return reply_with(request, answer=ArrayRecord(statistic))


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


@pytest.mark.parametrize(("wrong", "reason"), WRONGS)
def test_an_owner_that_does_wrong_is_out_and_the_others_go_on(
    job: Job, wrong: Any, reason: str
) -> None:
    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], wrong, at=1)
    grid = MemoryGrid(nodes)
    record = run_job(job, grid).record
    assert record.dropped.keys() == {"bert"}
    dropped = record.dropped["bert"]
    assert dropped.step == "statistic: bert.encoder.layer.0"
    assert re.search(reason, dropped.reason), dropped.reason
    assert len(dropped.reason) <= 300
    assert dropped.reason.isprintable()
    assert "secret" not in dropped.reason
    assert list(record.owners.values()) == [OWNERS, *[("anna", "cleo")] * 3]
    assert Checkpoint(job.folder / "out").sha256 == direct(job, [(0, 1, 2)] + [(0, 2)] * 3)
    # It was not asked again, and what it sent before counts.
    assert record.scores.keys() == {"anna", "cleo"}
    first = size_bytes(job.plan.method.schema_of(job.plan.blocks[0]))
    assert record.sent_bytes["bert"] == first
    assert grid.pulled.count(BERT) <= 2


def test_whoever_answers_twice_counts_once(job: Job) -> None:
    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], lambda _request, reply: [reply, reply], at=1)
    record = run_job(job, MemoryGrid(nodes)).record
    assert record.dropped == {}
    assert Checkpoint(job.folder / "out").sha256 == direct(job, [(0, 1, 2)] * 4)


def test_a_node_that_nobody_knows_is_not_heard(job: Job) -> None:
    def forged(_request: Message, reply: Message) -> list[Message]:
        stranger = request_of({"block": 0})
        stranger.metadata.dst_node_id = 99
        return [Message(reply.content, reply_to=stranger), reply]

    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], forged, at=1)
    record = run_job(job, MemoryGrid(nodes)).record
    assert record.dropped == {}
    assert set(record.owners.values()) == {OWNERS}
    assert Checkpoint(job.folder / "out").sha256 == direct(job, [(0, 1, 2)] * 4)


def test_with_one_owner_left_the_job_ends_and_says_why(job: Job) -> None:
    nodes = honest(job)
    nodes[ANNA] = misbehaving(nodes[ANNA], sends_nan, at=1)
    nodes[CLEO] = misbehaving(nodes[CLEO], refuses, at=1)
    with pytest.raises(TooFewOwners) as raised:
        run_job(job, MemoryGrid(nodes))
    message = raised.value.message
    assert "1 owner(s) are left, a sum needs 2" in message
    assert "anna (array" in message
    assert "cleo (PolicyRefused: see the owner's log)" in message
    assert raised.value.hint
    # The half of a result does not load.
    assert not (job.folder / "out" / "config.json").exists()


SCORES = {"accuracy": 0.5, "f1": 0.5, "examples": 5}


@pytest.mark.parametrize(
    "scores",
    [
        SCORES | {"accuracy": float("nan")},
        SCORES | {"accuracy": float("inf")},
        SCORES | {"accuracy": 1.5},
        SCORES | {"f1": -0.1},
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
    nodes[BERT] = misbehaving(nodes[BERT], lies, at=0, kind="evaluate")
    record = run_job(job, MemoryGrid(nodes)).record
    assert record.scores.keys() == {"anna", "cleo"}
    assert "the scores are not" in record.dropped["bert"].reason
    assert record.dropped["bert"].step == "evaluation"


def test_an_owner_that_publishes_nothing_is_not_missing(job: Job) -> None:
    nodes = honest(job)
    nodes[BERT] = misbehaving(
        nodes[BERT],
        lambda request, _: reply_with(request, scores=MetricRecord({})),
        at=0,
        kind="evaluate",
    )
    record = run_job(job, MemoryGrid(nodes)).record
    assert record.scores.keys() == {"anna", "cleo"}
    assert record.dropped == {}


def test_a_pause_that_raises_stops_the_job(job: Job) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], is_silent, at=1)
    with pytest.raises(Interrupted):
        run_job(job, MemoryGrid(nodes), pause=stop)


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
            block = request.content.config_records["request"]["block"]
            (reply,) = node(request)
            alive.append((request.metadata.message_type, block, Counted.alive))
            if request.metadata.message_type == "train":
                # Not by `array_records`, whose dictionary refers to itself.
                statistic = reply.content["answer"]
                assert isinstance(statistic, ArrayRecord)
                for array in statistic.values():
                    array.__dict__["data"] = Counted(array.data)
            return [reply]

        return answer

    # No road through bytes, which would make new ones.
    grid = MemoryGrid(
        {number: counted(node) for number, node in inner.items()}, road=lambda message: message
    )
    run_job(job, grid)
    for number, block in enumerate(job.plan.blocks):
        arrays = len(job.plan.method.schema_of(block))
        # When the second owner's comes, the first one's is the sum; when the third one's comes,
        # the sum is the server's own and both are gone.
        assert [count for kind, n, count in alive if (kind, n) == ("train", number)] == [
            0,
            arrays,
            0,
        ]
    assert Counted.alive == 0
