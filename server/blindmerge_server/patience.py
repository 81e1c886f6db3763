"""A grid for owners far away, who restart, or wait for a person's approval.

Flower hands a message out once. If its node goes away before it answers, the grid says that the
node is not there; the owner may be back in a minute, and the same question is asked again. Every
request may come twice: owners answer the same (secagg/SPEC.md §9).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from blindmerge_server.grid import StreamingGrid
from blindmerge_server.onlooker import Onlooker

__all__ = ["PatientGrid"]

_ASK_AGAIN_S = 5.0
_LOST = (
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,  # also of an answer whose node died while it sent it
)


class PatientGrid(StreamingGrid):
    """Asks again until the time is over.

    onlooker: is told what happens.
    clock: seconds that only grow.
    """

    def __init__(
        self,
        grid: Grid,
        pause: Callable[[], None],
        onlooker: Onlooker,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(grid, pause)
        self._onlooker = onlooker
        self._clock = clock

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Sends now; yields answers as they come, until all are there or the time is over."""
        deadline_s = self._clock() + (math.inf if timeout is None else timeout)
        asked = list(messages)
        self._onlooker.asked([message.metadata.dst_node_id for message in asked])
        return self._all(self._pushed(asked), deadline_s)

    def _pushed(self, messages: list[Message]) -> dict[str, Message]:
        sent = self._grid.push_messages(messages)
        return {name: each for name, each in zip(sent, messages, strict=False) if name}

    def _all(self, pending: dict[str, Message], deadline_s: float) -> Iterator[Message]:
        later: list[tuple[float, Message]] = []
        while (pending or later) and self._clock() < deadline_s:
            for name in tuple(pending):
                for reply in self._pull(name, []):
                    asked = pending.pop(name, None)
                    if asked is None:
                        continue
                    if why := _must_wait(reply):
                        self._onlooker.waits(asked.metadata.dst_node_id, why)
                        later.append((self._clock() + _ASK_AGAIN_S, asked))
                    else:
                        self._onlooker.answered(asked.metadata.dst_node_id)
                        yield reply
                    del reply
            later = self._ask_again(later, pending)
            if pending or later:
                self._pause()

    def _ask_again(
        self, later: list[tuple[float, Message]], pending: dict[str, Message]
    ) -> list[tuple[float, Message]]:
        """Sends what is due to nodes that are there; gives the rest."""
        due = [asked for at, asked in later if at <= self._clock()]
        if not due:
            return later
        here = set(self._grid.get_node_ids())
        ready = [asked for asked in due if asked.metadata.dst_node_id in here]
        pending |= self._pushed([_copy(asked) for asked in ready])
        waiting = [(at, asked) for at, asked in later if asked not in due]
        again_s = self._clock() + _ASK_AGAIN_S
        return waiting + [(again_s, asked) for asked in due if asked not in ready]


def _must_wait(reply: Message) -> str:
    """Why an answer is none yet; empty if it is one."""
    if reply.has_error():
        return "is not connected" if reply.error.code in _LOST else ""
    refusal: Any = reply.content.config_records.get("refusal")
    if refusal is not None and refusal.get("kind") == "ApprovalNeeded":
        return "waits for a person's approval"
    return ""


def _copy(asked: Message) -> Message:
    """The same question as a new message."""
    return Message(
        asked.content,
        dst_node_id=asked.metadata.dst_node_id,
        message_type=asked.metadata.message_type,
    )
