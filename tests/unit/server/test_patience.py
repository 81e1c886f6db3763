"""Owners who are away, restart, or wait for a person: they are asked again, and nobody else is."""

from collections.abc import Iterable, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.error import Error
from flwr.common.constant import ErrorCode

from blindmerge_server.patience import PatientGrid
from support.grids import MemoryGrid, Node, reply_with, request_of


class Clock:
    """Time passes when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def pause(self) -> None:
        self.now_s += 1.0


class Seen:
    """What an onlooker is told."""

    def __init__(self) -> None:
        self.was_asked: list[int] = []
        self.has_answered: list[int] = []
        self.had_to_wait: list[tuple[int, str]] = []

    def asked(self, nodes: Sequence[int]) -> None:
        self.was_asked += nodes

    def answered(self, node: int) -> None:
        self.has_answered.append(node)

    def waits(self, node: int, why: str) -> None:
        self.had_to_wait.append((node, why))


def request(node: int) -> Message:
    content = RecordDict({"request": ConfigRecord({"plan": b"p"})})
    return Message(content, dst_node_id=node, message_type="train")


def answers(*replies: str) -> tuple[Node, list[float]]:
    """A node that answers so, one after the other, and when it was asked."""
    asked: list[float] = []
    seen: list[str] = []

    def node(request: Message) -> Sequence[Message]:
        if request.metadata.message_id not in seen:
            seen.append(request.metadata.message_id)
            asked.append(CLOCK[0]())
        kind = replies[min(len(seen), len(replies)) - 1]
        if kind == "silent":
            return []
        if kind == "good":
            return reply_with(request, answer=ConfigRecord({"said": 1}))
        if kind in ("ApprovalNeeded", "PolicyRefused"):
            return reply_with(request, refusal=ConfigRecord({"kind": kind, "reason": ""}))
        return [Message(Error(code=getattr(ErrorCode, kind), reason=""), reply_to=request)]

    return node, asked


CLOCK: list[Clock] = [Clock()]


def ask(
    nodes: dict[int, Node], timeout: float = 100.0, here: Iterable[int] | None = None
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """What came, by node, and who had to wait and why."""
    request_of(None)  # Flower's identity of this process
    grid = MemoryGrid(nodes)
    if here is not None:
        present = list(here)
        grid.get_node_ids = lambda: present  # type: ignore[method-assign]
    seen = Seen()
    patient = PatientGrid(grid, CLOCK[0].pause, seen, CLOCK[0])
    replies = patient.send_and_receive([request(node) for node in nodes], timeout=timeout)
    assert seen.was_asked == list(nodes)
    came = [
        (
            each.metadata.src_node_id,
            "error" if each.has_error() else next(iter(each.content)),
        )
        for each in replies
    ]
    assert seen.has_answered == [node for node, _ in came]
    return came, seen.had_to_wait


def fresh() -> None:
    CLOCK[0] = Clock()


def test_good_answers_come_at_once() -> None:
    fresh()
    one, two = answers("good"), answers("good")
    assert ask({11: one[0], 12: two[0]}) == ([(11, "answer"), (12, "answer")], [])
    assert one[1] == two[1] == [0.0]


def test_who_was_lost_is_asked_again_after_a_while_and_answers() -> None:
    for lost in ("NODE_UNAVAILABLE", "REPLY_MESSAGE_UNAVAILABLE", "MESSAGE_UNAVAILABLE"):
        fresh()
        node, asked = answers(lost, lost, "good")
        other, once = answers("good")
        came, waits = ask({11: node, 12: other})
        assert came == [(12, "answer"), (11, "answer")]
        assert waits == [(11, "is not connected")] * 2
        assert once == [0.0]
        assert asked == [0.0, 6.0, 12.0]  # five seconds later, at the next look


def test_a_person_may_take_time_to_approve() -> None:
    fresh()
    node, asked = answers("ApprovalNeeded", "ApprovalNeeded", "ApprovalNeeded", "good")
    came, waits = ask({11: node})
    assert came == [(11, "answer")]
    assert waits == [(11, "waits for a person's approval")] * 3
    assert len(asked) == 4


def test_a_refusal_or_a_failure_is_an_answer() -> None:
    fresh()
    refusing, asked = answers("PolicyRefused")
    failing, failed = answers("CLIENT_APP_RAISED_EXCEPTION")
    came, waits = ask({11: refusing, 12: failing})
    assert came == [(11, "refusal"), (12, "error")]
    assert not waits
    assert len(asked) == len(failed) == 1


def test_the_time_ends_also_for_who_always_waits() -> None:
    fresh()
    silent, _ = answers("silent")
    waiting, asked = answers("ApprovalNeeded")
    came, _ = ask({11: silent, 12: waiting}, timeout=13.0)
    assert came == []
    assert len(asked) == 3
    assert CLOCK[0].now_s == 13.0


def test_nobody_is_asked_who_is_not_there() -> None:
    fresh()
    node, asked = answers("NODE_UNAVAILABLE", "good")
    came, _ = ask({11: node}, timeout=30.0, here=[])
    assert came == []
    assert asked == [0.0]
