"""What a coordinator sees of a job that runs, on a terminal and in a file."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from blindmerge_server.onlooker import JobShown
from blindmerge_server.strategy import Drop, JobRecord
from support.jobs import NAMES, make_job, under_masks

NODES = {11 + number: name for number, name in enumerate(NAMES[:3])}
CLEAR = "\x1b[2K"


class Screen:
    """A job's lines, in order, and what else is drawn."""

    def __init__(self, folder: Path, terminal: bool, nodes: dict[int, str] | None = None) -> None:
        self.record = JobRecord()
        self.said: list[str] = []
        self.now_s = 0.0
        self.drawn = io.StringIO()
        console = Console(file=self.drawn, force_terminal=terminal, width=80, highlight=False)
        plan = under_masks(make_job(folder, owners=3)).plan
        clock: Callable[[], float] = lambda: self.now_s  # noqa: E731
        self.shown = JobShown(
            plan, self.record, nodes or NODES, 0, self.said.append, console, clock
        )

    def look(self) -> str:
        """What is drawn at a look."""
        before = self.drawn.tell()
        self.shown.look()
        return self.drawn.getvalue()[before:]


@pytest.fixture
def terminal(tmp_path: Path) -> Screen:
    return Screen(tmp_path, terminal=True)


@pytest.fixture
def file(tmp_path: Path) -> Screen:
    return Screen(tmp_path, terminal=False)


def test_each_exchange_is_a_line_with_its_bytes_and_who_is_gone(file: Screen) -> None:
    record, shown = file.record, file.shown
    record.seconds["R0 advertise"], record.sent_bytes["anna"] = 1.25, 700
    shown.closed(1)
    shown.asked(list(NODES))
    for _ in range(3):
        shown.waits(12, "is not connected")
    record.seconds["R1 share"], record.sent_bytes["anna"] = 61.0, 700 + 2048
    record.dropped["bert"] = Drop("R1 share", "PolicyRefused: rule 'methods' of its policy")
    shown.closed(2)
    shown.asked(list(NODES))
    shown.waits(12, "is not connected")
    assert file.said == [
        "[1/8] R0 advertise: 700 bytes, 1.2 s",
        "  bert is not connected",
        "  bert is out at R1 share: PolicyRefused: rule 'methods' of its policy",
        "[2/8] R1 share: 2.0 KiB, 1 min 1 s",
        "  bert is not connected",
    ]


def test_a_terminal_shows_who_has_not_answered_yet(terminal: Screen) -> None:
    shown = terminal.shown
    shown.asked(list(NODES))
    line = "  0 of 3 answered in 0.0 s, waiting for anna, bert, cleo: R0 advertise"
    assert line in terminal.look()
    terminal.now_s = 90.0
    shown.answered(12)
    assert "1 of 3 answered in 1 min 30 s, waiting for anna, cleo: R0" in terminal.look()
    shown.answered(11)
    shown.answered(13)
    assert terminal.drawn.getvalue().endswith("  all 3 have answered: R0 advertise")
    assert terminal.look() == "", "nothing is waited for"
    terminal.record.seconds["R0 advertise"] = 90.0
    shown.closed(1)
    assert terminal.drawn.getvalue().rstrip("\r\n").endswith((CLEAR, "\x1b[?25h"))
    assert terminal.said == ["[1/8] R0 advertise: 0 bytes, 1 min 30 s"]
    shown.asked(list(NODES))
    assert "  0 of 3" in terminal.look()
    shown.end()


def test_a_file_gets_a_line_a_minute(file: Screen) -> None:
    file.shown.asked(list(NODES))
    file.shown.answered(11)
    for second in range(125):
        file.now_s = float(second)
        assert file.look() == ""
    assert file.said == [
        "  1 of 3 answered in 1 min 1 s, waiting for bert, cleo: R0 advertise",
        "  1 of 3 answered in 2 min 2 s, waiting for bert, cleo: R0 advertise",
    ]


def test_of_many_owners_some_are_named(tmp_path: Path) -> None:
    many = {number: f"owner-{number:03}" for number in range(300)}
    screen = Screen(tmp_path, terminal=True, nodes=many)
    screen.shown.asked(list(many))
    drawn = screen.look()
    assert "owner-000" in drawn
    assert "owner-009" not in drawn
    assert all(len(line) <= 100 for line in drawn.splitlines()), "cut to the width, but for codes"
    screen.shown.end()
