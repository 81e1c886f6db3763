"""A Flower grid that yields replies one by one and can be stopped."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from blindmerge.errors import ProtocolBroken

__all__ = ["StreamingGrid", "owners_of"]

_log = logging.getLogger("blindmerge.server")


class StreamingGrid:
    """A grid whose replies can be added one by one as they come, and that can be stopped.

    Flower's own grid gathers all replies first: one block of every owner in memory at once.
    pause: called between looks for replies; waits a little, shows progress, and may raise
    to stop the job.
    """

    def __init__(self, grid: Grid, pause: Callable[[], None]) -> None:
        self._grid = grid
        self._pause = pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Sends now; yields replies as they come, until all are there or the time is over.

        timeout: in seconds; None waits for ever.
        """
        # Flower has no id for a message that it could not send; nobody will answer that one.
        pending = [sent for sent in self._grid.push_messages(list(messages)) if sent]
        return self._replies(pending, time.monotonic() + (math.inf if timeout is None else timeout))

    def _replies(self, pending: list[str], deadline_s: float) -> Iterator[Message]:
        while pending and time.monotonic() < deadline_s:
            for sent in tuple(pending):
                # One by one: asked for all at once, Flower loads all that are there.
                for reply in self._pull(sent, pending):
                    if sent in pending:
                        pending.remove(sent)
                    yield reply
                    del reply
            if pending:
                self._pause()

    def _pull(self, sent: str, pending: list[str]) -> Iterable[Message]:
        """The reply to a message, if it is there; a reply that Flower cannot read is none."""
        try:
            return self._grid.pull_messages([sent])
        except (AttributeError, LookupError, TypeError, ValueError):  # not of the network's kind
            _log.exception("a reply cannot be read")
            pending.remove(sent)
            return ()


def owners_of(grid: Grid, timeout_s: float | None = None) -> dict[int, str]:
    """Owner by node id, as the nodes say; under masks a lie is found at the first signature.

    Nodes that do not answer are left out.   Raises ProtocolBroken if two claim one name.
    """
    nodes = sorted(grid.get_node_ids())
    asked = [Message(RecordDict(), dst_node_id=n, message_type="query.name") for n in nodes]
    found: dict[int, str] = {}
    for reply in grid.send_and_receive(asked, timeout=timeout_s):
        record = None if reply.has_error() else reply.content.config_records.get("owner")
        if record is not None:
            found[reply.metadata.src_node_id] = str(record.get("name"))
    for name in found.values():
        if list(found.values()).count(name) > 1:
            raise ProtocolBroken(f"two nodes say that they are {name[:64]!a}")
    return found
