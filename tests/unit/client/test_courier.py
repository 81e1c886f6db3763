"""The courier answers every request with an answer, scores, or a refusal that tells little."""

import logging
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp

from blindmerge.checkpoint import Checkpoint, Tensors
from blindmerge.errors import (
    BlindmergeError,
    CheckpointInvalid,
    DataInvalid,
    NotFinite,
    PeerInvalid,
    PolicyRefused,
)
from blindmerge.identity import Identity
from blindmerge.plan import Plan
from blindmerge.signed_plan import SignedPlan
from blindmerge.wire import from_wire, to_wire
from blindmerge_client.app import NO_BLOCK, courier
from blindmerge_client.refusal import NoAnswer
from blindmerge_client.remote import RemoteOwner
from support.grids import context_of, over_the_wire, request_of
from support.jobs import Job, edit_weights, make_job, under_masks, with_plan
from support.plans import make_plan
from support.randomness import CounterRandomness

PRIVATE = "our patient fell ill"
PLAN = make_plan().encode()


class Fake:
    """An owner that notes what it is asked and can fail."""

    name = "fake"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[Any, ...]] = []
        self.reply = {"a": np.array([1.0, -2.0])}
        self.scores: Mapping[str, float] = {"accuracy": 0.5, "f1": 0.25, "examples": 3}

    def answer(
        self, plan: Plan, block: int | None, messages: Sequence[bytes]
    ) -> Mapping[str, np.ndarray[Any, Any]]:
        self.asked.append(("answer", plan.sha256, block, list(messages)))
        if self.error is not None:
            raise self.error
        return self.reply

    def receive(self, plan: Plan, merged: Tensors) -> None:
        self.asked.append(("receive", plan.sha256, sorted(merged)))

    def evaluate(self, plan: Plan) -> Mapping[str, float]:
        self.asked.append(("evaluate", plan.sha256))
        return self.scores


def ask(owner: Any, request: Message) -> Message:
    app: ClientApp = courier(lambda _context: owner, Plan.decode)
    reply = app(over_the_wire(request), context_of(7))
    assert reply.metadata.reply_to_message_id == request.metadata.message_id
    return over_the_wire(reply)


def refusal(reply: Message) -> tuple[str, str]:
    """Kind and reason; a refusal is all that the reply holds."""
    assert set(reply.content) == {"refusal"}
    record = reply.content.config_records["refusal"]
    assert set(record) == {"kind", "reason"}
    return str(record["kind"]), str(record["reason"])


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


def record_of(tensors: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(*to_wire(array)) for name, array in tensors.items()})


def asking(job: Job, block: int, *messages: bytes, merged: ArrayRecord | None = None) -> Message:
    content = {"plan": job.plan.encode(), "block": block, "messages": list(messages)}
    return request_of(content, merged)


def test_a_whole_job_over_the_courier(job: Job) -> None:
    owner = job.owner(0)
    merged = Checkpoint(job.owners[1])
    for number, block in enumerate(job.plan.blocks):
        before = job.plan.blocks[number - 1].shapes if number else {}
        reply = ask(owner, asking(job, number, merged=record_of(merged.read(before))))
        assert set(reply.content) == {"answer"}
        arrays = {
            name: from_wire(array.dtype, array.shape, array.stype, array.data)
            for name, array in reply.content.array_records["answer"].items()
        }
        expected = job.session(0).contribute(number)
        assert arrays.keys() == job.plan.method.schema_of(block).keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, expected[name])
    last = record_of(merged.read(job.plan.blocks[3].shapes))
    reply = ask(owner, request_of({"plan": job.plan.encode()}, last, kind="evaluate"))
    scores = dict(reply.content.metric_records["scores"])
    assert scores.keys() == {"accuracy", "f1", "examples"}
    assert scores["examples"] == 5
    assert Checkpoint(owner.session(job.plan).finish()).sha256 == merged.sha256


def test_merged_tensors_are_kept_before_anything_is_answered(job: Job) -> None:
    owner = Fake()
    ask(owner, asking(job, 0))
    ask(owner, asking(job, 2, merged=record_of({"x": np.ones(2)})))
    ask(owner, asking(job, NO_BLOCK, b"one", b"two"))
    last = record_of({"y": np.ones(2)})
    ask(owner, request_of({"plan": job.plan.encode()}, last, "evaluate"))
    sha256 = job.plan.sha256
    assert owner.asked == [
        ("answer", sha256, 0, []),
        ("receive", sha256, ["x"]),
        ("answer", sha256, 2, []),
        ("answer", sha256, None, [b"one", b"two"]),
        ("receive", sha256, ["y"]),
        ("evaluate", sha256),
    ]


def test_an_answer_of_messages_arrives_as_it_was(job: Job) -> None:
    owner, said = Fake(), [b"", b"one", bytes(range(256))]
    owner.reply = {str(n): np.frombuffer(data, np.uint8) for n, data in enumerate(said)}
    record = ask(owner, asking(job, NO_BLOCK)).content.array_records["answer"]
    assert [array.data for array in record.values()] == said


def test_an_owner_can_have_nothing_to_say(job: Job) -> None:
    owner = Fake()
    owner.reply = {}
    reply = ask(owner, asking(job, NO_BLOCK))
    assert set(reply.content) == {"answer"}
    assert not reply.content.array_records["answer"]


def test_the_courier_says_whose_it_is() -> None:
    reply = ask(Fake(), request_of(None, kind="query.name"))
    assert set(reply.content) == {"owner"}
    assert dict(reply.content.config_records["owner"]) == {"name": "fake"}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"block": 0},
        {"plan": b"plan"},
        {"plan": "plan", "block": 0},
        {"plan": PLAN, "block": "0"},
        {"plan": PLAN, "block": 0.0},
        {"plan": PLAN, "block": True},
        {"plan": PLAN, "block": [0]},
        {"plan": PLAN, "block": 0, "messages": b"one"},
        {"plan": PLAN, "block": 0, "messages": 1},
        {"plan": PLAN, "block": 0, "messages": ["one"]},
        {"plan": PLAN, "block": 0, "messages": [1]},
        {"plan": b"plan", "block": 0},
        {"plan": b"", "block": 0},
        {"plan": b"\xa0", "block": 0},
    ],
)
def test_a_malformed_request_reaches_nobody(content: Any, kind: str) -> None:
    def nobody(_context: Any) -> Any:
        raise AssertionError("the owner was looked for")

    reply = courier(nobody, Plan.decode)(request_of(content, kind=kind), context_of(7))
    found, reason = refusal(reply)
    assert found in ("PeerInvalid", "NotCanonical")
    assert reason


def test_a_plan_with_bytes_that_follow_is_refused(job: Job) -> None:
    owner = Fake()
    request = request_of({"plan": job.plan.encode() + b"\0", "block": 0})
    assert refusal(ask(owner, request))[0] == "NotCanonical"
    assert owner.asked == []


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (3,), "blindmerge/little-endian", bytes(8)),
        Array("float32", (-1,), "blindmerge/little-endian", bytes(8)),
        Array("float32", (2**40,), "blindmerge/little-endian", bytes(8)),
        Array("int64", (1,), "blindmerge/little-endian", bytes(8)),
        Array(np.ones(1)),  # Flower's own form, which numpy.load would parse
    ],
)
def test_merged_tensors_that_lie_are_refused(array: Array, job: Job) -> None:
    owner = Fake()
    request = asking(job, 1, merged=ArrayRecord({"x": array}))
    assert refusal(ask(owner, request))[0] == "SchemaMismatch"
    assert owner.asked == []


def test_half_a_block_of_merged_tensors_is_refused_with_the_reason(job: Job) -> None:
    whole = Checkpoint(job.base).read(job.plan.blocks[0].shapes)
    half = {name: whole[name] for name in sorted(whole)[1:]}
    kind, reason = refusal(ask(job.owner(0), asking(job, 1, merged=record_of(half))))
    assert kind == "SchemaMismatch"
    assert "embeddings" in reason


@pytest.mark.parametrize("block", [-2, 4, 2**62])
def test_a_block_that_does_not_exist_is_refused_with_the_reason(block: int, job: Job) -> None:
    assert refusal(ask(job.owner(0), asking(job, block))) == (
        "PeerInvalid",
        f"there is no block {block}: the plan has 4",
    )


def test_a_policy_is_not_told(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it is the masks or the roster or something else, is for the owner's own log."""
    masked = under_masks(make_job(job.folder / "three", owners=3))
    open_plan = with_plan(masked, masks="off")
    expected = ("PolicyRefused", "see the owner's log")
    assert refusal(ask(masked.owner(0), asking(open_plan, 0))) == expected
    assert "the server would see this owner's statistics" in caplog.text
    assert (
        refusal(ask(replace(masked, identities=()).owner(0), asking(masked, NO_BLOCK))) == expected
    )
    assert "no identity and roster" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError(PRIVATE), "InternalError"),
        (KeyError(PRIVATE), "InternalError"),
        (UnicodeDecodeError("utf-8", PRIVATE.encode(), 0, 1, PRIVATE), "InternalError"),
        (DataInvalid(PRIVATE, hint=PRIVATE), "DataInvalid"),
        (CheckpointInvalid(PRIVATE, hint=PRIVATE), "CheckpointInvalid"),
        (PolicyRefused(PRIVATE, hint=PRIVATE), "PolicyRefused"),
    ],
)
def test_what_happened_at_the_owner_stays_there(
    error: Exception, kind: str, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="blindmerge.client"):
        reply = ask(Fake(error), asking(job, 0))
    assert refusal(reply) == (kind, "see the owner's log")
    # The owner can read what it was.
    assert PRIVATE in caplog.text


@pytest.mark.parametrize(
    "error", [PeerInvalid("ask me properly"), NotFinite("array 'a' holds NaN")]
)
def test_what_the_server_did_wrong_it_is_told(error: BlindmergeError, job: Job) -> None:
    reply = ask(Fake(error), asking(job, 0))
    assert refusal(reply) == (type(error).__name__, error.message)


def spoil(job: Job) -> None:
    """The owner's model diverged."""
    edit_weights(job.owners[0], lambda t: t["classifier.bias"].__setitem__(0, np.float32("nan")))


@pytest.mark.parametrize("accident", [spoil, lambda job: (job.base / "config.json").unlink()])
def test_no_path_of_the_owner_is_told(accident: Any, job: Job) -> None:
    request = asking(job, 0)
    accident(job)
    assert refusal(ask(job.owner(0), request)) == ("CheckpointInvalid", "see the owner's log")


def test_no_path_of_the_owner_is_told_with_a_plan_for_another_base(job: Job) -> None:
    plan = with_plan(job, base="0" * 64).plan
    kind, reason = refusal(ask(job.owner(0), request_of({"plan": plan.encode(), "block": 0})))
    assert kind == "PeerInvalid"
    assert "another base model" in reason
    assert str(job.folder) not in reason


def test_a_person_at_the_keyboard_is_not_an_answer(job: Job) -> None:
    def stopped(_context: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        courier(stopped, Plan.decode)(asking(job, 0), context_of(7))


def test_owners_are_found_by_their_context(job: Job) -> None:
    owners = [Fake(), Fake()]
    app = courier(lambda context: owners[int(context.node_config["partition-id"])], Plan.decode)
    app(asking(job, 0), context_of(7, **{"partition-id": 1}))
    assert [len(owner.asked) for owner in owners] == [0, 1]


def test_nothing_is_answered_where_the_gateway_ends_meanwhile(tmp_path: Path) -> None:
    # A refusal would end the owner's part in the job; a node that leaves is asked again.
    signed = SignedPlan.sign(make_plan(), Identity.generate("coordinator", CounterRandomness(0)))
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as gateway, closing(RemoteOwner(path)) as owner:
        gateway.bind(str(path))
        gateway.listen()
        dying = Thread(target=lambda: gateway.accept()[0].close())
        dying.start()
        app = courier(lambda _: owner, SignedPlan.decode)
        with pytest.raises(NoAnswer, match="does not answer"):
            app(request_of({"plan": signed.encode()}), context_of(7))
        dying.join()
