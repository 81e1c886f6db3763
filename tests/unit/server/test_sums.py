"""Whole jobs under masks: the result, who is in it, and what the server gets to see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import PeerInvalid, ProtocolBroken, TooFewOwners
from blindmerge.plan import Plan
from blindmerge.secagg.transcript import verify_transcript
from blindmerge_server.exchanges import exchanges
from blindmerge_server.simulate.bounds import public_layouts
from blindmerge_server.sums import SecureSums
from support.grids import (
    FIRST_NODE,
    MemoryGrid,
    Recorder,
    fails,
    honest,
    is_silent,
    misbehaving,
    refuses,
    run_job,
    sums_of,
)
from support.jobs import NAMES, Job, assert_average, make_job, under_masks, weights_of, with_plan

FOUR = NAMES[:4]
BERT = FIRST_NODE + 1
ALL = (0, 1, 2, 3)
NEVER = 2**40  # Unix time in seconds


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Four owners, and a method that is cheap to compute."""
    return under_masks(make_job(tmp_path, owners=4, method="average"))


@pytest.mark.parametrize(("method", "bits"), [("regmean", 64), ("regmean", 48), ("fisher", 64)])
def test_a_job_under_masks_gives_what_it_gives_without(
    method: str, bits: Any, tmp_path: Path
) -> None:
    """Within 10^-6 of each tensor's largest number: float32 rounds by 6 * 10^-8.

    The public bounds leave at least 2^-45 of a row's largest number in 64 bits, 2^-37 in 48;
    both are far below float32 even if a condition number of 10^3 amplifies them. Fisher's
    floor is 10^-6, 2^-20, of a block's largest mean.
    """
    open_job = make_job(tmp_path, owners=3, method=method)
    run_job(open_job, MemoryGrid(honest(open_job)))
    expected = weights_of(tmp_path / "out")
    masked = under_masks(Job(**vars(open_job) | {"folder": tmp_path / "masked"}), bits)
    layouts = public_layouts(masked.plan, masked.base)
    sums = SecureSums(masked.plan, masked.roster, layouts, tmp_path / "spool", NEVER)
    record = run_job(masked, MemoryGrid(honest(masked)), sums).record
    assert record.dropped == {}
    assert set(record.owners.values()) == {NAMES[:3]}
    merged = weights_of(tmp_path / "masked" / "out")
    assert merged.keys() == expected.keys()
    for name, array in merged.items():
        assert np.abs(array - expected[name]).max() <= 1e-6 * np.abs(expected[name]).max(), name
    # Every owner has it, and nothing is left of the masked blocks.
    for name in NAMES[:3]:
        own = masked.folder / name / masked.plan.sha256 / "merged"
        assert Checkpoint(own).sha256 == Checkpoint(masked.folder / "out").sha256
    assert not list((tmp_path / "spool").rglob("*.blocks"))


# Exchange by exchange: what it asks for, and who is in the sum if bert leaves there.
STEPS = [
    (0, "R0 advertise", (0, 2, 3)),
    (1, "R1 share", (0, 2, 3)),
    (2, "R2 masked input: embeddings", (0, 2, 3)),
    (4, "R2 masked input: bert.encoder.layer.1", (0, 2, 3)),
    (5, "R2 masked input: head", (0, 2, 3)),
    (6, "R3 consistency", ALL),
    (7, "R4 unmask", ALL),
]
WAYS = [
    (is_silent, "no readable answer in time"),
    (fails, "the node failed (code 3)"),
    (refuses, "PolicyRefused: see the owner's log"),
]


@pytest.mark.parametrize(("wrong", "reason"), WAYS)
@pytest.mark.parametrize(("at", "step", "present"), STEPS)
def test_the_job_goes_on_without_one_that_leaves(
    job: Job, wrong: Any, reason: str, at: int, step: str, present: tuple[int, ...]
) -> None:
    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], wrong, at)
    record = run_job(job, MemoryGrid(nodes)).record
    assert record.dropped.keys() == {"bert"}
    assert (record.dropped["bert"].step, record.dropped["bert"].reason) == (step, reason)
    names = tuple(NAMES[number] for number in present)
    assert record.owners == {block.name: names for block in job.plan.blocks}
    assert_average(job, present)
    (proof,) = record.proofs
    # What a third party finds in the proof is what the record says.
    assert verify_transcript(proof.transcript.encode()).summed == names
    rest = ("anna", "cleo", "dora")
    assert proof.transcript.signed == (FOUR if at == 7 else rest)
    assert proof.openers == rest
    assert record.scores.keys() == set(rest)


@pytest.mark.parametrize("at", [at for at, _, _ in STEPS])
def test_too_few_owners_end_the_job_with_names_and_reasons(job: Job, at: int) -> None:
    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], is_silent, at)
    nodes[BERT + 2] = misbehaving(nodes[BERT + 2], refuses, at)
    with pytest.raises(TooFewOwners) as raised:
        run_job(job, MemoryGrid(nodes))
    assert raised.value.message == (
        "2 owner(s) are left, a sum needs 3. Missing: bert (no readable answer in time); "
        "dora (PolicyRefused: see the owner's log)"
    )
    assert raised.value.hint
    assert not (job.folder / "out" / "config.json").exists()


def test_whoever_leaves_after_the_sum_does_not_undo_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindmerge_server.exchanges._DELIVERY_BYTES", 1)
    steps, _ = exchanges(job.plan)
    assert [each.kind for each in steps[8:]] == ["delivery"] * 3
    nodes = honest(job)
    for number in (1, 2, 3):
        node = FIRST_NODE + number
        nodes[node] = misbehaving(nodes[node], is_silent, at=8)
    record = run_job(job, MemoryGrid(nodes)).record
    assert {drop.step for drop in record.dropped.values()} == {"delivery"}
    assert_average(job, ALL)
    assert record.scores.keys() == {"anna"}


@pytest.mark.parametrize("method", ["average", "progressive"])
def test_what_was_sent_is_counted(method: str, tmp_path: Path) -> None:
    job = under_masks(make_job(tmp_path, owners=3, method=method))
    road = Recorder()
    record = run_job(job, MemoryGrid(honest(job), road)).record
    sent = dict.fromkeys(NAMES[:3], 0)
    for reply in road.replies:
        answer = reply.content.get("answer")
        if isinstance(answer, ArrayRecord):
            name = NAMES[reply.metadata.src_node_id - FIRST_NODE]
            sent[name] += sum(len(array.data) for array in answer.values())
    assert record.sent_bytes == sent
    steps, _ = exchanges(job.plan)
    assert len(record.seconds) == len(steps)


@pytest.mark.parametrize("at", [3, 5])
def test_an_owner_that_leaves_a_progressive_job_is_out_for_the_rest(
    at: int, tmp_path: Path
) -> None:
    """At 3 it is to sign the first sum and advertise keys for the second, at 5 to send a part."""
    job = under_masks(make_job(tmp_path, owners=4, texts=3, method="progressive"))
    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], is_silent, at)
    record = run_job(job, MemoryGrid(nodes)).record
    rest = ("anna", "cleo", "dora")
    assert record.dropped.keys() == {"bert"}
    assert [p.transcript.summed for p in record.proofs] == list(record.owners.values())
    assert list(record.owners.values()) == [FOUR, *[rest] * (len(job.plan.phases) - 1)]
    assert record.proofs[0].transcript.signed == (rest if at == 3 else FOUR)


def test_layouts_that_do_not_fit_the_plan_are_refused(job: Job) -> None:
    layouts = public_layouts(job.plan, job.base)
    for wrong in (layouts * 2, (), (layouts[0][:-1],), (tuple(reversed(layouts[0])),)):
        with pytest.raises(PeerInvalid):
            SecureSums(job.plan, job.roster, wrong, job.folder / "spool", NEVER)
    one_less = under_masks(Job(job.base, job.owners[:3], job.texts[:3], job.plan, job.folder))
    with pytest.raises(ProtocolBroken, match="another roster"):
        SecureSums(job.plan, one_less.roster, layouts, job.folder / "spool", NEVER)
    with pytest.raises(PeerInvalid):
        SecureSums(with_plan(job, masks="off").plan, job.roster, layouts, job.folder, NEVER)


def test_strangers_are_neither_told_nor_heard(job: Job) -> None:
    sums = sums_of(job)
    first = exchanges(job.plan)[0][0]
    with pytest.raises(PeerInvalid, match="'zoe' is not in the roster"):
        sums.messages(first, "zoe")
    with pytest.raises(PeerInvalid, match="'zoe' is not in the roster"):
        sums.receive(first, "zoe", {})


def test_the_plan_travels_whole(job: Job) -> None:
    road = Recorder()
    run_job(job, MemoryGrid(honest(job), road))
    plans = {request.content.config_records["request"]["plan"] for request in road.requests}
    assert plans == {job.plan.encode()}
    assert Plan.decode(job.plan.encode()) == job.plan
