"""A Flower grid that yields replies one by one and can be stopped."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["StreamingGrid"]

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
