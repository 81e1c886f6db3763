"""The gateway over its socket: what the courier asks, what it gets, and when it gets nothing."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.checkpoint import Tensors
from blindmerge.errors import DataInvalid, PolicyRefused, ProtocolBroken, ResourceMissing
from blindmerge.identity import Identity
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.gateway import serve_gateway
from blindmerge_client.refusal import NoAnswer, Refusal
from blindmerge_client.remote import RemoteOwner
from support.plans import make_plan
from support.randomness import CounterRandomness
from support.threads import serving

# httpcore leaves a Unix socket open whose connection failed, until it is collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PRIVATE = "our patient fell ill"
PLAN = SignedPlan.sign(make_plan(), Identity.generate("uni", CounterRandomness("uni")))
Connect = Callable[..., RemoteOwner]
Arrays = Mapping[str, np.ndarray[Any, Any]]


class Fake:
    """A guard that notes what it is asked; `error` is raised instead of an answer."""

    name = "anna"
    largest_delivery = 1 << 10

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.at_once = 0
        self.most_at_once = 0

    def answer(self, signed: SignedPlan, block: int | None, messages: Sequence[bytes]) -> Arrays:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(0.01)
        self.at_once -= 1
        self.asked.append((signed, block, tuple(messages)))
        if self.error is not None:
            raise self.error
        return {"0": np.frombuffer(b"answer", np.uint8)}

    def receive(self, signed: SignedPlan, merged: Tensors) -> None:
        self.asked.append((signed, {name: array.copy() for name, array in merged.items()}))

    def evaluate(self, signed: SignedPlan) -> Mapping[str, float]:
        self.asked.append((signed,))
        return {"accuracy": 0.5}


@pytest.fixture
def guard() -> Fake:
    return Fake()


@pytest.fixture
def socket(tmp_path: Path, guard: Any) -> Iterator[Path]:
    path = tmp_path / "gateway.sock"
    with serving(lambda: serve_gateway(guard, path)):
        yield path


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes owners at a socket, where it waits until somebody listens."""
    with ExitStack() as open_ones:

        def at(socket: Path, done: Callable[[str], None] = lambda _: None) -> RemoteOwner:
            owner = open_ones.enter_context(closing(RemoteOwner(socket, done)))
            for _ in range(1000):
                try:
                    assert owner.name == "anna"
                except NoAnswer:
                    time.sleep(0.005)
                else:
                    return owner
            raise AssertionError("nobody listens")

        yield at


def test_questions_and_answers_come_through(connect: Connect, socket: Path, guard: Fake) -> None:
    done: list[str] = []
    owner = connect(socket, done.append)
    assert owner.answer(PLAN, 2, [b"one", b"two"])["0"].tobytes() == b"answer"
    tensors = {"a": np.array([[1.5, -0.0]], dtype=np.float32)}
    owner.receive(PLAN, tensors)
    assert not done
    assert owner.evaluate(PLAN) == {"accuracy": 0.5}
    assert done == [PLAN.plan.job]
    answer, receive, evaluate = guard.asked
    assert answer == (PLAN, 2, (b"one", b"two"))
    assert receive[1]["a"].tobytes() == tensors["a"].tobytes()
    assert evaluate == (PLAN,)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ProtocolBroken("no such block"), "ProtocolBroken", "no such block"),
        (PolicyRefused(PRIVATE, hint=PRIVATE, told="rule 'x'"), "PolicyRefused", "rule 'x'"),
        (PolicyRefused(PRIVATE), "PolicyRefused", "see the owner's log"),
        (DataInvalid(PRIVATE), "DataInvalid", "see the owner's log"),
        (KeyError(PRIVATE), "InternalError", "see the owner's log"),
        (MemoryError(PRIVATE), "InternalError", "see the owner's log"),
    ],
)
def test_a_refusal_tells_what_may_be_told(
    connect: Connect, socket: Path, guard: Fake, error: Exception, kind: str, reason: str
) -> None:
    guard.error = error
    with pytest.raises(Refusal) as caught:
        connect(socket).answer(PLAN, None, [])
    assert (caught.value.kind, caught.value.reason) == (kind, reason)
    assert PRIVATE not in str(caught.value)


def test_one_request_at_a_time_is_worked_on(connect: Connect, socket: Path, guard: Fake) -> None:
    owners = [connect(socket) for _ in range(4)]
    threads = [threading.Thread(target=each.answer, args=(PLAN, 0, [])) for each in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(guard.asked) == 4
    assert guard.most_at_once == 1


def test_without_a_gateway_nothing_is_said(tmp_path: Path) -> None:
    with (
        closing(RemoteOwner(tmp_path / "gateway.sock")) as owner,
        pytest.raises(NoAnswer, match="does not answer"),
    ):
        owner.answer(PLAN, None, [])


def test_a_gateway_that_was_killed_left_a_socket_which_is_replaced(
    connect: Connect, tmp_path: Path, guard: Any
) -> None:
    path = tmp_path / "gateway.sock"
    for _ in range(2):
        with serving(lambda: serve_gateway(guard, path)):
            connect(path)
        path.touch()
        path.unlink()
    assert len(guard.asked) == 0


def test_what_is_too_long_is_not_read(connect: Connect, socket: Path, guard: Fake) -> None:
    huge = {"a": np.zeros(1 << 24, dtype=np.float64)}  # 128 MiB, more than 64 MiB and a delivery
    with pytest.raises(ResourceMissing, match="HTTP 413"):
        connect(socket).receive(PLAN, huge)
    assert not guard.asked
