"""Replies are handed on as they come, one by one."""

from typing import Any

import pytest
from flwr.app import Message, RecordDict

from blindmerge_server.grid import StreamingGrid
from support.grids import MemoryGrid, request_of

NODES = (11, 12, 13)


def echo(request: Message) -> list[Message]:
    return [Message(RecordDict(), reply_to=request)]


def requests(*nodes: int) -> list[Message]:
    request_of({})  # tells Flower who we are
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]


def test_replies_are_yielded_as_they_come() -> None:
    ready = {11}

    def late(request: Message) -> list[Message]:
        return echo(request) if request.metadata.dst_node_id in ready else []

    looks: list[set[int]] = []

    def pause() -> None:
        looks.append(set(ready))
        ready.add(13 if 13 not in ready else 12)

    grid = MemoryGrid(dict.fromkeys(NODES, late))
    replies = StreamingGrid(grid, pause).send_and_receive(requests(*NODES))
    assert grid.pulled == []
    assert next(iter(replies)).metadata.src_node_id == 11
    assert grid.pulled == [11]
    assert [reply.metadata.src_node_id for reply in replies] == [13, 12]
    # No pause after the last reply.
    assert looks == [{11}, {11, 13}]


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_no_time_is_not_for_ever(timeout: float) -> None:
    grid = MemoryGrid(dict.fromkeys(NODES, lambda _: []))
    streaming = StreamingGrid(grid, lambda: pytest.fail("it waits"))
    assert list(streaming.send_and_receive(requests(*NODES), timeout=timeout)) == []


def test_a_message_that_flower_could_not_send_is_not_waited_for() -> None:
    class Lossy(MemoryGrid):
        def push_messages(self, messages: Any) -> Any:
            return [*super().push_messages(messages), None]

    streaming = StreamingGrid(Lossy({11: echo}), lambda: pytest.fail("it waits"))
    assert len(list(streaming.send_and_receive(requests(11)))) == 1


def test_other_things_are_asked_of_the_grid_itself() -> None:
    grid = MemoryGrid({11: echo})
    assert StreamingGrid(grid, lambda: None).get_node_ids() == [11]
