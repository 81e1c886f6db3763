"""The courier answers every request with a statistic, scores, or a refusal that tells little."""

import logging
from collections.abc import Mapping
from pathlib import Path
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
from blindmerge.plan import Plan
from blindmerge.statistic import Statistic
from blindmerge.wire import from_wire, to_wire
from blindmerge_client.app import courier
from blindmerge_client.owner import Owner
from support.grids import context_of, over_the_wire, request_of
from support.jobs import Job, edit_weights, make_job
from support.pico import pico_examples

PRIVATE = "our patient fell ill"


class Fake:
    """An owner that notes what it is asked and can fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[Any, ...]] = []
        self.statistic = Statistic({"a": (2,)}, {"a": np.array([1.0, -2.0])})
        self.scores: Mapping[str, float] = {"accuracy": 0.5, "macro_f1": 0.25, "examples": 3}

    def contribute(self, plan: Plan, phase: int) -> Statistic:
        self.asked.append(("contribute", plan.sha256, phase))
        if self.error is not None:
            raise self.error
        return self.statistic

    def receive(self, plan: Plan, phase: int, merged: Tensors) -> None:
        self.asked.append(("receive", plan.sha256, phase, sorted(merged)))

    def evaluate(self, plan: Plan) -> Mapping[str, float]:
        self.asked.append(("evaluate", plan.sha256))
        return self.scores


def ask(owner: Any, request: Message) -> Message:
    app: ClientApp = courier(lambda _context: owner)
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


def real_owner(job: Job) -> Owner:
    examples = pico_examples(12, seed=0)
    return Owner("a", job.base, job.owners[0], examples, job.folder / "owner", examples)


def test_a_whole_job_over_the_courier(job: Job) -> None:
    owner = real_owner(job)
    merged = Checkpoint(job.owners[1])
    plan = job.plan.encode()
    for phase, block in enumerate(job.plan.phases):
        before = job.plan.phases[phase - 1].shapes if phase else {}
        request = request_of({"plan": plan, "phase": phase}, record_of(merged.read(before)))
        reply = ask(owner, request)
        assert set(reply.content) == {"statistic"}
        arrays = {
            name: from_wire(array.dtype, array.shape, array.stype, array.data)
            for name, array in reply.content.array_records["statistic"].items()
        }
        expected = job.session(0).contribute(phase)
        assert arrays.keys() == job.plan.method.schema_of(block).keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, expected[name])
    last = record_of(merged.read(job.plan.phases[3].shapes))
    reply = ask(owner, request_of({"plan": plan, "phase": 3}, last, kind="evaluate"))
    scores = dict(reply.content.metric_records["scores"])
    assert scores.keys() == {"accuracy", "macro_f1", "examples"}
    assert scores["examples"] == 12
    assert Checkpoint(owner.session(job.plan).finish()).sha256 == merged.sha256


def test_merged_tensors_go_to_the_phase_before(job: Job) -> None:
    owner = Fake()
    encoded = job.plan.encode()
    ask(owner, request_of({"plan": encoded, "phase": 0}))
    ask(owner, request_of({"plan": encoded, "phase": 2}, record_of({"x": np.ones(2)})))
    ask(owner, request_of({"plan": encoded, "phase": 3}, record_of({"y": np.ones(2)}), "evaluate"))
    sha256 = job.plan.sha256
    assert owner.asked == [
        ("contribute", sha256, 0),
        ("receive", sha256, 1, ["x"]),
        ("contribute", sha256, 2),
        ("receive", sha256, 3, ["y"]),
        ("evaluate", sha256),
    ]


def test_scores_are_only_those_of_the_last_phase(job: Job) -> None:
    owner = Fake()
    request = request_of({"plan": job.plan.encode(), "phase": 2}, record_of({}), "evaluate")
    assert refusal(ask(owner, request))[0] == "PeerInvalid"
    assert owner.asked == []


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"phase": 0},
        {"plan": b"plan"},
        {"plan": "plan", "phase": 0},
        {"plan": b"plan", "phase": "0"},
        {"plan": b"plan", "phase": 0.0},
        {"plan": b"plan", "phase": True},
        {"plan": b"plan", "phase": [0]},
        {"plan": b"plan", "phase": 0},
        {"plan": b"", "phase": 0},
        {"plan": b"\xa0", "phase": 0},
    ],
)
def test_a_malformed_request_reaches_nobody(content: Any, kind: str) -> None:
    def nobody(_context: Any) -> Any:
        raise AssertionError("the owner was looked for")

    reply = courier(nobody)(request_of(content, kind=kind), context_of(7))
    found, reason = refusal(reply)
    assert found in ("PeerInvalid", "NotCanonical")
    assert reason


def test_a_plan_with_bytes_that_follow_is_refused(job: Job) -> None:
    owner = Fake()
    request = request_of({"plan": job.plan.encode() + b"\0", "phase": 0})
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
    merged = ArrayRecord({"x": array})
    request = request_of({"plan": job.plan.encode(), "phase": 1}, merged)
    assert refusal(ask(owner, request))[0] == "SchemaMismatch"
    assert owner.asked == []


def test_merged_tensors_of_another_block_are_refused_with_the_reason(job: Job) -> None:
    other = Checkpoint(job.base).read(job.plan.phases[2].shapes)
    request = request_of({"plan": job.plan.encode(), "phase": 1}, record_of(other))
    kind, reason = refusal(ask(real_owner(job), request))
    assert kind == "SchemaMismatch"
    assert "embeddings" in reason


@pytest.mark.parametrize("phase", [-1, 4, 2**62])
def test_a_phase_that_does_not_exist_is_refused_with_the_reason(phase: int, job: Job) -> None:
    request = request_of({"plan": job.plan.encode(), "phase": phase})
    assert refusal(ask(real_owner(job), request)) == (
        "PeerInvalid",
        f"there is no phase {phase}: the plan has 4",
    )


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
        reply = ask(Fake(error), request_of({"plan": job.plan.encode(), "phase": 0}))
    assert refusal(reply) == (kind, "see the owner's log")
    # The owner can read what it was.
    assert PRIVATE in caplog.text


@pytest.mark.parametrize(
    "error", [PeerInvalid("ask me properly"), NotFinite("array 'a' holds NaN")]
)
def test_what_the_server_did_wrong_it_is_told(error: BlindmergeError, job: Job) -> None:
    reply = ask(Fake(error), request_of({"plan": job.plan.encode(), "phase": 0}))
    assert refusal(reply) == (type(error).__name__, error.message)


def spoil(job: Job) -> None:
    """The owner's model diverged."""
    edit_weights(job.owners[0], lambda t: t["classifier.bias"].__setitem__(0, np.float32("nan")))


@pytest.mark.parametrize("accident", [spoil, lambda job: (job.base / "config.json").unlink()])
def test_no_path_of_the_owner_is_told(accident: Any, job: Job) -> None:
    request = request_of({"plan": job.plan.encode(), "phase": 0})
    accident(job)
    assert refusal(ask(real_owner(job), request)) == ("CheckpointInvalid", "see the owner's log")


def test_no_path_of_the_owner_is_told_with_a_plan_for_another_base(job: Job) -> None:
    plan = job.plan.model_copy(update={"base": "0" * 64})
    kind, reason = refusal(ask(real_owner(job), request_of({"plan": plan.encode(), "phase": 0})))
    assert kind == "PeerInvalid"
    assert "another base model" in reason
    assert str(job.folder) not in reason


def test_a_person_at_the_keyboard_is_not_an_answer(job: Job) -> None:
    def stopped(_context: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        courier(stopped)(request_of({"plan": job.plan.encode(), "phase": 0}), context_of(7))


def test_owners_are_found_by_their_context(job: Job) -> None:
    owners = [Fake(), Fake()]
    app = courier(lambda context: owners[int(context.node_config["partition-id"])])
    app(request_of({"plan": job.plan.encode(), "phase": 0}), context_of(7, **{"partition-id": 1}))
    assert [len(owner.asked) for owner in owners] == [0, 1]
