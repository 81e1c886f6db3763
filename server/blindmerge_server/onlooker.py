"""What a coordinator sees of a job that runs: who has answered, who has not, who is gone.

A line for each exchange that is closed stays. Of the one that is open a terminal shows its last
line; elsewhere it is a line a minute.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from blindmerge.plan import Plan
from blindmerge_server.exchanges import exchanges, in_words
from blindmerge_server.report.wording import duration, size
from blindmerge_server.strategy import EVALUATION, JobRecord

__all__ = ["JobShown", "Onlooker"]

_LINE_EVERY_S = 60.0
_MOST_NAMES = 5
Say = Callable[[str], None]


class Onlooker(Protocol):
    """Told what happens in the exchange that is open, by number of the node."""

    def asked(self, nodes: Sequence[int]) -> None:
        """An exchange begins: these are asked."""

    def answered(self, node: int) -> None:
        """One of them has answered."""

    def waits(self, node: int, why: str) -> None:
        """One of them will be asked again."""


class JobShown:
    """An onlooker that tells a person.

    nodes: owner by node.   closed: how many exchanges are.   say: shows a line that stays.
    clock: seconds that only grow.
    """

    def __init__(
        self,
        plan: Plan,
        record: JobRecord,
        nodes: dict[int, str],
        closed: int,
        say: Say,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = [*(in_words(plan, each) for each in exchanges(plan)[0]), EVALUATION]
        self._record, self._nodes, self._say, self._clock = record, nodes, say, clock
        self._gone = set(record.dropped)
        self._bytes = sum(record.sent_bytes.values())
        self._closed = closed
        self._missing: set[str] = set()
        self._asked = 0
        self._waits: set[tuple[int, str]] = set()
        self._began_s = self._said_s = clock()
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def asked(self, nodes: Sequence[int]) -> None:
        """See `Onlooker`."""
        self._missing, self._asked = {self._nodes[node] for node in nodes}, len(nodes)
        self._waits.clear()
        self._began_s = self._said_s = self._clock()

    def answered(self, node: int) -> None:
        """See `Onlooker`."""
        self._missing.discard(self._nodes[node])
        if not self._missing:
            self._draw(f"  all {self._asked} have answered: {self._steps[self._closed]}")

    def waits(self, node: int, why: str) -> None:
        """See `Onlooker`; said once in an exchange."""
        if (node, why) not in self._waits:
            self._lasting(f"  {self._nodes[node]} {why}")
            self._waits.add((node, why))

    def look(self) -> None:
        """Shows where the exchange is that is open; call it now and then."""
        if not self._missing:
            return
        self._draw(self._line())
        if not self._console.is_terminal and self._clock() - self._said_s > _LINE_EVERY_S:
            self._said_s = self._clock()
            self._say(self._line())

    def closed(self, done: int) -> None:
        """So many exchanges are closed."""
        record = self._record
        for owner in sorted(set(record.dropped) - self._gone):
            drop = record.dropped[owner]
            self._lasting(f"  {owner} is out at {drop.step}: {drop.reason}")
        self._gone, self._closed = set(record.dropped), done
        self._missing.clear()
        step, seconds = list(record.seconds.items())[-1]
        before, self._bytes = self._bytes, sum(record.sent_bytes.values())
        self._lasting(
            f"[{done}/{len(self._steps) - 1}] {step}: {size(self._bytes - before)}, "
            f"{duration(seconds)}"
        )

    def end(self) -> None:
        """Nothing more is shown."""
        self._live.stop()

    def _draw(self, line: str) -> None:
        """Makes it the last line of a terminal."""
        if self._console.is_terminal:
            if not self._live.is_started:
                self._live.start()
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _line(self) -> str:
        missing = sorted(self._missing)
        names = ", ".join(missing[:_MOST_NAMES])
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        return (
            f"  {self._asked - len(missing)} of {self._asked} answered in "
            f"{duration(self._clock() - self._began_s)}, waiting for {names}{more}: "
            f"{self._steps[self._closed]}"
        )

    def _lasting(self, line: str) -> None:
        self._live.stop()
        self._say(line)
