"""How far long work is, for the person at the terminal."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["Meter", "Meters", "Watch", "unmetered", "unwatched"]

_T = TypeVar("_T")
_BAR_AFTER_S = 1.0
_LINE_EVERY_S = 60.0


class Watch(Protocol):
    """Gives the steps one by one, and shows how many are behind us."""

    def __call__(self, steps: Sequence[_T], /) -> Iterable[_T]:
        """The same steps."""


class Meter(Protocol):
    """Work of so many steps; in the block, what it gives is called after each."""

    def __call__(self, what: str, steps: int, /) -> AbstractContextManager[Callable[[], None]]:
        """what: in a word or two."""


def unwatched(steps: Sequence[_T], /) -> Iterable[_T]:
    """Shows nothing."""
    return steps


def unmetered(_what: str, _steps: int, /) -> AbstractContextManager[Callable[[], None]]:
    """Shows nothing."""
    return nullcontext(lambda: None)


class Meters:
    """On a terminal a bar for what takes more than a second; elsewhere a line a minute.

    One at a time: what is part of other work shows nothing of its own.
    clock: seconds that only grow.
    """

    def __init__(
        self,
        what: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._busy = threading.Lock()

    def watch(self, steps: Sequence[_T], /) -> Iterator[_T]:
        """The steps of `what`."""
        with self.meter(self._what, len(steps)) as done:
            for step in steps:
                yield step
                done()

    @contextmanager
    def meter(self, what: str, steps: int, /) -> Iterator[Callable[[], None]]:
        """See `Meter`; steps may be done in any thread."""
        if not self._busy.acquire(blocking=False):
            yield lambda: None
            return
        shown = _Shown(what, steps, self._console, self._clock)
        try:
            yield shown.done
        finally:
            shown.end()
            self._busy.release()


class _Shown:
    """One piece of work."""

    def __init__(self, what: str, steps: int, console: Console, clock: Callable[[], float]) -> None:
        self._what, self._steps = what, steps
        self._console, self._clock = console, clock
        self._lock = threading.Lock()
        self._number = 0
        self._began_s = self._said_s = clock()
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=steps)

    def done(self) -> None:
        """One more step is."""
        with self._lock:
            self._number += 1
            now_s = self._clock()
            if self._console.is_terminal:
                self._bar.update(self._task, completed=self._number)
                if now_s - self._began_s > _BAR_AFTER_S and not self._bar.live.is_started:
                    self._bar.start()
            elif now_s - self._said_s > _LINE_EVERY_S and self._number < self._steps:
                self._said_s = now_s
                self._console.print(
                    f"  {self._what}: {100 * self._number // self._steps} % "
                    f"in {now_s - self._began_s:.0f} s"
                )

    def end(self) -> None:
        """Nothing more is shown."""
        if self._bar.live.is_started:
            self._bar.stop()
