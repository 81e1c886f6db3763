"""Whole jobs under masks: the result, who is in it, and what the server gets to see."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message
from scipy.stats import chi2

from blindmerge.checkpoint import Checkpoint
from blindmerge.encoding import to_wire as ring_to_wire
from blindmerge.errors import PeerInvalid, ProtocolBroken, TooFewOwners
from blindmerge.plan import Plan
from blindmerge.secagg.messages import KINDS, SEALED_BYTES, Block, Deal, Limits, encode, parse
from blindmerge.secagg.transcript import verify_transcript
from blindmerge.wire import to_wire
from blindmerge_server.exchanges import exchanges
from blindmerge_server.simulate.bounds import public_layouts
from blindmerge_server.sums import SecureSums
from support.grids import (
    FIRST_NODE,
    MemoryGrid,
    fails,
    honest,
    is_silent,
    misbehaving,
    over_the_wire,
    refuses,
    reply_with,
    run_job,
    sums_of,
)
from support.jobs import NAMES, Job, make_job, under_masks, with_plan

FOUR = NAMES[:4]
BERT = FIRST_NODE + 1
ALL = (0, 1, 2, 3)
NEVER = 2**40  # Unix time in seconds


@pytest.fixture(scope="module")
def base_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Four owners and a method that is cheap to compute."""
    return make_job(tmp_path_factory.mktemp("job"), owners=4, method="average")


@pytest.fixture
def job(base_job: Job, tmp_path: Path) -> Job:
    """The same under masks, on a folder of its own."""
    return under_masks(Job(base_job.base, base_job.owners, base_job.texts, base_job.plan, tmp_path))


def weights(folder: Path) -> dict[str, Any]:
    checkpoint = Checkpoint(folder)
    return checkpoint.read(checkpoint.manifest.shapes)


def assert_average(job: Job, present: tuple[int, ...]) -> None:
    """The merged model is the mean of these owners' models.

    The ring is off by at most 1.5 * 2^-48 in a sum (`error_bound` with exponents 61 - 12 = 49
    and up to four owners); the base's float32 numbers are then rounded by 2^-24 of theirs.
    """
    own = [weights(job.owners[number]) for number in present]
    for name, array in weights(job.folder / "out").items():
        mean = np.mean([each[name] for each in own], axis=0)
        assert (np.abs(array - mean) <= 2.0**-24 * np.abs(mean) + 2.0**-46).all(), name


@pytest.mark.parametrize(("method", "bits"), [("regmean", 64), ("regmean", 48), ("fisher", 64)])
def test_a_job_under_masks_gives_what_it_gives_without(
    method: str, bits: Any, tmp_path: Path
) -> None:
    """Within 10^-6 of each tensor's largest number: float32 rounds by 6 * 10^-8.

    The public bounds leave at least 2^-45 of a row's largest number in 64 bits, 2^-37 in 48;
    both are far below float32 even if a condition number of 10^3 amplifies them. Fisher's
    floor is 10^-6, 2^-20, of a tensor's mean.
    """
    open_job = make_job(tmp_path, owners=3, method=method)
    run_job(open_job, MemoryGrid(honest(open_job)))
    expected = weights(tmp_path / "out")
    masked = under_masks(Job(**vars(open_job) | {"folder": tmp_path / "masked"}), bits)
    layouts = public_layouts(masked.plan, masked.base)
    sums = SecureSums(masked.plan, masked.roster, layouts, tmp_path / "spool", NEVER)
    record = run_job(masked, MemoryGrid(honest(masked)), sums).record
    assert record.dropped == {}
    assert set(record.owners.values()) == {NAMES[:3]}
    merged = weights(tmp_path / "masked" / "out")
    assert merged.keys() == expected.keys()
    for name, array in merged.items():
        if method == "fisher" and name.endswith("key.bias"):
            continue  # softmax does not see it: its Fisher information is rounding noise, 10^-16
        assert np.abs(array - expected[name]).max() <= 1e-6 * np.abs(expected[name]).max(), name
    # Every owner has it, and nothing is left of the masked blocks.
    for name in NAMES[:3]:
        own = masked.folder / name / masked.plan.sha256 / "merged"
        assert Checkpoint(own).sha256 == Checkpoint(masked.folder / "out").sha256
    assert not list((tmp_path / "spool").rglob("*.blocks"))


class Watched:
    """The road between server and owners; keeps every message."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def __call__(self, message: Message) -> Message:
        self.seen.append(over_the_wire(message))
        return over_the_wire(message)

    @property
    def requests(self) -> Iterator[Message]:
        return (each for each in self.seen if not each.metadata.reply_to_message_id)

    @property
    def replies(self) -> Iterator[Message]:
        return (each for each in self.seen if each.metadata.reply_to_message_id)


# Of bytes that are uniform, one run in 10^12 has a larger chi-squared.
UNIFORM = float(chi2.isf(1e-12, 255))


def unevenness(data: bytes) -> float:
    """Chi-squared of the counts of the 256 bytes."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2).sum() / expected)


def test_no_number_of_an_owner_is_on_the_wire(tmp_path: Path) -> None:
    job = under_masks(make_job(tmp_path, owners=3, rows_factor=0.0))
    road = Watched()
    sums = sums_of(job)
    assert isinstance(sums, SecureSums)
    record = run_job(job, MemoryGrid(honest(job), road), sums).record
    (proof,) = record.proofs
    manifest = proof.transcript.manifest
    limits = Limits.of(manifest)
    masked: dict[tuple[str, int], bytes] = {}
    for reply in road.replies:
        owner = NAMES[reply.metadata.src_node_id - FIRST_NODE]
        # Answers to the messages of the protocol, and at the end the scores; nothing else.
        if reply.metadata.message_type == "evaluate":
            assert set(reply.content) == {"scores"}
            continue
        assert set(reply.content) == {"answer"}
        for array in reply.content.array_records["answer"].values():
            assert array.dtype == "uint8"
            message = parse(array.data, limits)
            assert message.kind in KINDS
            if isinstance(message, Block):
                masked[owner, message.index] = message.payload
    for request in road.requests:
        assert set(request.content) == {"request", "merged"}
        asked = request.content.config_records["request"]
        assert asked.keys() == {"plan", "block", "messages"}
        for data in asked["messages"]:  # type: ignore[union-attr]
            assert parse(data, limits).kind != "block"  # type: ignore[arg-type]
    assert masked.keys() == {(o, b) for o in NAMES[:3] for b in range(manifest.blocks)}

    everything = b"".join(masked.values())
    assert unevenness(everything) < UNIFORM
    plain: dict[tuple[str, int], bytes] = {}
    for number, owner in enumerate(NAMES[:3]):
        session = job.session(number)
        for part, layout in enumerate(manifest.parts):
            statistic = session.contribute(part)
            for index, block in enumerate(manifest.blocks_of(part)):
                ring = layout.encode(statistic, index)
                plain[owner, block] = ring_to_wire(ring, layout.bits)
    # The same test finds numbers that are not masked.
    assert unevenness(b"".join(plain.values())) > 100 * UNIFORM
    for key, payload in masked.items():
        numbers, hidden = (np.frombuffer(data, "<u8") for data in (plain[key], payload))
        # Each number agrees by chance in one of 2^64 cases.
        assert not (numbers == hidden).any()
    # Nor is a mask used twice: differences of two owners, or of two blocks, are masked too.
    for owner, other in (("anna", "bert"), ("bert", "cleo"), ("anna", "cleo")):
        apart, known = (
            np.concatenate(
                [
                    np.frombuffer(data[owner, b], "<u8") - np.frombuffer(data[other, b], "<u8")
                    for b in range(manifest.blocks)
                ]
            )
            for data in (masked, plain)
        )
        assert not (apart == known).any()
        assert unevenness(apart.tobytes()) < UNIFORM


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


# Hostile answers, each instead of the honest reply.


def messages_of(reply: Message) -> list[bytes]:
    return [array.data for array in reply.content.array_records["answer"].values()]


def saying(request: Message, messages: list[bytes]) -> list[Message]:
    arrays = {
        str(n): Array(*to_wire(np.frombuffer(data, np.uint8))) for n, data in enumerate(messages)
    }
    return reply_with(request, answer=ArrayRecord(arrays))


def nonsense(request: Message, _reply: Message) -> list[Message]:
    return saying(request, [b"\xff" * 50])


def nothing(request: Message, _reply: Message) -> list[Message]:
    return saying(request, [])


def no_record(request: Message, _reply: Message) -> list[Message]:
    return reply_with(request)


def twice(request: Message, reply: Message) -> list[Message]:
    return saying(request, 2 * messages_of(reply))


def one_less(request: Message, reply: Message) -> list[Message]:
    return saying(request, messages_of(reply)[:-1])


def cut(request: Message, reply: Message) -> list[Message]:
    *rest, last = messages_of(reply)
    return saying(request, [*rest, last[:-8]])


def contradiction(request: Message, reply: Message) -> list[Message]:
    """All that was asked for, and one of it again with another payload."""
    messages = messages_of(reply)
    return saying(request, [*messages, messages[0][:-1] + bytes([messages[0][-1] ^ 1])])


def numbers(request: Message, _reply: Message) -> list[Message]:
    """A statistic in the open."""
    return reply_with(request, answer=ArrayRecord({"a": Array(*to_wire(np.ones(100)))}))


HOSTILE = [
    *[(wrong, at) for at in (0, 1, 6, 7) for wrong in (nonsense, nothing, no_record, twice, cut)],
    *[(w, at) for at in (2, 4) for w in (nonsense, nothing, no_record, one_less, cut, numbers)],
    (contradiction, 2),
]


@pytest.mark.parametrize(("wrong", "at"), HOSTILE)
def test_a_hostile_answer_costs_nobody_else_anything(job: Job, wrong: Any, at: int) -> None:
    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], wrong, at)
    record = run_job(job, MemoryGrid(nodes)).record
    assert record.dropped.keys() == {"bert"}
    assert record.dropped["bert"].reason.isprintable()
    present = ALL if at > 5 else (0, 2, 3)
    assert set(record.owners.values()) == {tuple(NAMES[number] for number in present)}
    assert_average(job, present)


@pytest.mark.parametrize("at", [0, 6, 7])
def test_the_message_of_another_owner_is_not_ones_own(job: Job, at: int) -> None:
    nodes, heard = honest(job), list[list[bytes]]()

    def overheard(_request: Message, reply: Message) -> list[Message]:
        heard.append(messages_of(reply))
        return [reply]

    # anna is asked first.
    nodes[FIRST_NODE] = misbehaving(nodes[FIRST_NODE], overheard, at)
    nodes[BERT] = misbehaving(nodes[BERT], lambda request, _reply: saying(request, heard[0]), at)
    record = run_job(job, MemoryGrid(nodes)).record
    assert heard
    assert record.dropped.keys() == {"bert"}
    assert_average(job, (0, 2, 3) if at == 0 else ALL)


CULPRIT = "ShareInvalid: 'bert', or the server that carried it, sent shares that do not open"


def with_spoilt_shares(job: Job, count: int) -> MemoryGrid:
    """bert deals shares that do not open, to the first `count` of the others."""

    def spoilt(request: Message, reply: Message) -> list[Message]:
        (data,) = messages_of(reply)
        deal = parse(data, Limits(owners=4, message_bytes=len(data)))
        assert isinstance(deal, Deal)
        sealed = bytearray(deal.sealed)
        for place in range(count):
            sealed[place * SEALED_BYTES] ^= 1
        return saying(request, [encode(replace(deal, sealed=bytes(sealed)), 4)])

    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], spoilt, at=1)
    return MemoryGrid(nodes)


def test_shares_that_do_not_open_are_found_by_who_got_them(job: Job) -> None:
    """The server cannot see it: the owner that can has to leave, and names the culprit."""
    record = run_job(job, with_spoilt_shares(job, 1)).record
    assert record.dropped["anna"].reason == CULPRIT
    assert record.dropped.keys() == {"anna"}
    assert_average(job, (1, 2, 3))


def test_a_job_that_shares_stop_names_who_dealt_them(job: Job) -> None:
    with pytest.raises(TooFewOwners, match=CULPRIT):
        run_job(job, with_spoilt_shares(job, 3))


@pytest.mark.parametrize("method", ["average", "progressive"])
def test_what_was_sent_is_counted(method: str, tmp_path: Path) -> None:
    job = under_masks(make_job(tmp_path, owners=3, method=method))
    road = Watched()
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


def test_masked_blocks_on_disk_are_private_and_masked(job: Job) -> None:
    """Between the rounds, when the server has all of them."""
    found: list[tuple[int, bytes]] = []

    def look(request: Message, reply: Message) -> list[Message]:
        del request
        for file in sorted((job.folder / "spool").rglob("*.blocks")):
            found.append((file.stat().st_mode & 0o777, file.read_bytes()))
        return [reply]

    nodes = honest(job)
    nodes[FIRST_NODE] = misbehaving(nodes[FIRST_NODE], look, at=6)
    run_job(job, MemoryGrid(nodes))
    assert [mode for mode, _ in found] == [0o600] * 4
    assert unevenness(b"".join(data for _, data in found)) < UNIFORM


def test_the_plan_travels_whole(job: Job) -> None:
    road = Watched()
    run_job(job, MemoryGrid(honest(job), road))
    plans = {request.content.config_records["request"]["plan"] for request in road.requests}
    assert plans == {job.plan.encode()}
    assert Plan.decode(job.plan.encode()) == job.plan
