"""The node: it sends what the gateway says, and never anything because of a loss or a restart."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from flwr.app import Message

from blindmerge.errors import ConfigInvalid, ResourceMissing
from blindmerge.secagg.secret import OsRandomness
from blindmerge.signed_plan import SignedPlan
from blindmerge_client import run
from blindmerge_client.config import Client, Home
from blindmerge_client.refusal import NoAnswer, Refusal
from blindmerge_client.setup import make_home
from support.grids import request_of
from support.plans import make_plan
from support.secure_sum import identities

COORDINATOR = identities(1)[0]
PLAN = SignedPlan.sign(make_plan(), COORDINATOR)


def question(kind: str = "train", number: int = 0) -> Message:
    return request_of({"plan": PLAN.encode(), "block": number, "messages": []}, kind=kind)


class FakeOwner:
    """What the gateway says, one thing after the other; an error is raised."""

    script: ClassVar[list[Any]] = []
    asked: ClassVar[list[int | None]] = []

    def __init__(self, path: Path, done: Any) -> None:
        del path
        self._done = done

    def answer(self, plan: SignedPlan, block: int | None, messages: Any) -> Any:
        del plan, messages
        self.asked.append(block)
        said = self.script.pop(0) if self.script else b"answer"
        if isinstance(said, BaseException):
            raise said
        return {"0": np.frombuffer(said, np.uint8)}

    def receive(self, plan: SignedPlan, merged: Any) -> None:
        """Nothing."""

    def evaluate(self, plan: SignedPlan) -> dict[str, float]:
        self._done(plan.plan.job)
        return {}


class FakeFleet:
    """A server that hands these messages out; an error is raised instead."""

    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages
        self.sent: list[Message] = []
        self.refuses_to_take: list[BaseException] = []

    def receive(self) -> Message | None:
        said: Any = self.messages.pop(0) if self.messages else KeyboardInterrupt()
        if isinstance(said, BaseException):
            raise said
        message: Message | None = said
        return message

    def send(self, message: Message) -> None:
        if self.refuses_to_take:
            raise self.refuses_to_take.pop(0)
        self.sent.append(message)


class World:
    """Server and gateway of a node that is run in this process."""

    def __init__(self, home: Home, patch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.said: list[str] = []
        self.entered = 0
        self.cannot_enter: list[BaseException] = []
        self.fleet = FakeFleet([])
        self.owner = FakeOwner
        FakeOwner.script, FakeOwner.asked = [], []
        patch.setattr(run, "connected", self.connected)
        patch.setattr(run, "RemoteOwner", FakeOwner)
        patch.setattr(run, "log_to_file", lambda _: None)
        for name in ("_POLL_S", "_AGAIN_S", "_FORGET_S"):
            patch.setattr(run, name, 0.0)

    @contextmanager
    def connected(self, *_: Any) -> Iterator[FakeFleet]:
        if self.cannot_enter:
            raise self.cannot_enter.pop(0)
        self.entered += 1
        yield self.fleet

    def run(self, once: bool = False) -> None:
        run.run_node(self.home, once, self.said.append)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    home = make_home(tmp_path / "anna", "anna", OsRandomness())
    (home.folder / "ca.crt").write_text("")
    return World(home, monkeypatch)


def http_error(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://server/")
    return httpx.HTTPStatusError(str(code), request=request, response=httpx.Response(code))


def records(world: World) -> list[str]:
    return [next(iter(message.content)) for message in world.fleet.sent]


def test_each_question_gets_its_answer(world: World) -> None:
    world.fleet.messages = [question(number=0), None, question(number=1)]
    world.run()
    assert records(world) == ["answer", "answer"]
    assert FakeOwner.asked == [0, 1]
    assert world.said[-1] == "stopped; a job that was going on waits for the next start"


def test_a_node_enters_twice_so_that_the_server_knows_it_lost_what_it_was_given(
    world: World,
) -> None:
    world.run()
    assert world.entered == 2


def test_a_gateway_that_is_gone_is_waited_for_and_nothing_is_sent(world: World) -> None:
    FakeOwner.script = [NoAnswer("the gateway is away"), NoAnswer("the gateway is away"), b"here"]
    world.fleet.messages = [question()]
    world.run()
    assert records(world) == ["answer"]
    assert FakeOwner.asked == [0, 0, 0]
    assert world.said.count("the gateway is away; trying again") == 1


def test_a_refusal_is_sent(world: World) -> None:
    FakeOwner.script = [Refusal("PolicyRefused", "rule")]
    world.fleet.messages = [question()]
    world.run()
    assert records(world) == ["refusal"]


def test_a_stop_in_the_middle_of_an_answer_sends_nothing(world: World) -> None:
    FakeOwner.script = [KeyboardInterrupt()]
    world.fleet.messages = [question(), question()]
    world.run()
    assert world.fleet.sent == []
    assert world.said[-1].startswith("stopped")


@pytest.mark.parametrize("where", ["receive", "send"])
def test_a_run_that_was_stopped_meanwhile_is_passed_over(world: World, where: str) -> None:
    if where == "send":
        world.fleet.refuses_to_take = [http_error(403)]
        world.fleet.messages = [question(number=0), question(number=1)]
    else:
        world.fleet.messages = [http_error(403), question(number=1)]
    world.run()
    assert records(world) == ["answer"]
    assert world.entered == 2, "the connection stays"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (httpx.ConnectError("Connection refused"), "Connection refused"),
        (http_error(401), "it does not know this node"),
        (http_error(412), "or still holds its last connection"),
        (http_error(500), "HTTP 500"),
    ],
)
def test_a_server_that_is_not_there_is_waited_for_and_told_once(
    world: World, error: BaseException, told: str
) -> None:
    world.cannot_enter = [error, error, error]
    world.fleet.messages = [question()]
    world.run()
    assert records(world) == ["answer"]
    troubles = [line for line in world.said if "trying again" in line]
    assert len(troubles) == 1
    assert told in troubles[0]


def test_a_lost_connection_is_made_again(world: World) -> None:
    world.fleet.messages = [question(number=0), httpx.ReadError("reset"), question(number=1)]
    world.run()
    assert records(world) == ["answer", "answer"]
    assert world.entered == 4


def test_once_leaves_when_the_last_answer_is_sent_and_not_before(world: World) -> None:
    world.fleet.refuses_to_take = [httpx.ReadError("reset")]
    world.fleet.messages = [question("evaluate"), question("evaluate"), question()]
    world.run(once=True)
    assert records(world) == ["scores"]
    assert len(world.fleet.messages) == 1, "left after the job"
    assert f"job '{PLAN.plan.job}' is done: blindmerge client evaluate" in world.said[-1]


def test_without_once_it_goes_on_after_a_job(world: World) -> None:
    world.fleet.messages = [question("evaluate"), question()]
    world.run()
    assert records(world) == ["scores", "answer"]


def test_a_gateway_process_that_ended_ends_the_client(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int | None] = [None, None, 1]

    class Gateway:
        def poll(self) -> int | None:
            return ended.pop(0) if len(ended) > 1 else 1

    @contextmanager
    def gateway(*_: Any) -> Iterator[Gateway]:
        yield Gateway()

    monkeypatch.setattr(run, "_gateway", gateway)
    monkeypatch.setattr(Client, "check", lambda *_: None)
    FakeOwner.script = [NoAnswer("gone")] * 9
    world.fleet.messages = [question()]
    with pytest.raises(ResourceMissing, match="the gateway ended"):
        run.run_client(world.home, False, world.said.append)
    assert world.fleet.sent == []


def test_what_is_missing_is_told_before_anything_starts(world: World) -> None:
    (world.home.folder / "ca.crt").unlink()
    with pytest.raises(ConfigInvalid, match="there is no certificate authority") as caught:
        world.run()
    assert "coordinator" in caught.value.hint
    with pytest.raises(ConfigInvalid, match=r"base: .* does not exist"):
        run.run_client(world.home, False, world.said.append)
    assert world.entered == 0


def test_the_half_with_the_network_loads_no_model_library() -> None:
    code = (
        "import sys, blindmerge_client.run, blindmerge_client.commands;"
        "print(*sorted({'torch', 'transformers', 'accelerate', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == []
