"""What a person sees while a simulation works, and how it is stopped."""

import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from blindmerge.errors import Interrupted
from blindmerge_server.report.wording import name_of

__all__ = ["Bars", "Watch"]

_POLL_S = 0.1


class Watch:
    """Told what happens; this one shows nothing. `stop` ends the run at the next pause."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def say(self, line: str) -> None:
        """Something worth a line."""

    def step(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of `what` are behind us."""

    def merging(self, method: str, total: int) -> Callable[[int], None]:
        """A method of `total` exchanges begins; the result is told how many are done."""
        show = partial(self.step, f"merge: {name_of(method)}")
        show(0, total)
        return lambda done: show(done, total)

    def pause(self) -> None:
        """Waits a little; raises Interrupted once `stop` is set."""
        if self.stop.wait(_POLL_S):
            raise Interrupted("stopped", hint="run the same command again: trained models are kept")


class Bars(Watch):
    """Progress bars on a terminal, a line per finished step elsewhere."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, tuple[TaskID, bool]] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Prints the line above the bars."""
        self._console.print(line, highlight=False)

    def step(self, what: str, done: int, total: int) -> None:
        """Moves the bar of `what`, which appears with its first step."""
        if what not in self._tasks:
            self._tasks[what] = (self._progress.add_task(what, total=total), False)
        task, ended = self._tasks[what]
        self._progress.update(task, completed=done, total=total)
        if done >= total and not ended:
            self._tasks[what] = (task, True)
            self._progress.stop_task(task)
            if not self._console.is_terminal:
                self.say(f"{what}: done")
