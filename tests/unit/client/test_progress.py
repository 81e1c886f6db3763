"""Bars on a terminal for what takes long, a line a minute elsewhere, and no step lost."""

import io
from contextlib import suppress

import pytest
from rich.console import Console

from blindmerge_client.progress import Meters


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def meters(terminal: bool) -> tuple[Meters, io.StringIO, Clock]:
    drawn, clock = io.StringIO(), Clock()
    console = Console(file=drawn, force_terminal=terminal, width=80, highlight=False)
    return Meters("reading", console, clock), drawn, clock


@pytest.mark.parametrize("terminal", [True, False])
def test_every_step_comes_once_and_in_order(terminal: bool) -> None:
    found, _, clock = meters(terminal)
    for step in found.watch(range(9)):
        clock.now_s += step
    assert list(found.watch(range(9))) == list(range(9))


def test_a_terminal_shows_a_bar_after_a_second_and_takes_it_away() -> None:
    found, drawn, clock = meters(terminal=True)
    for step in found.watch(range(4)):
        assert (drawn.getvalue() == "") == (step < 2)
        clock.now_s += 0.6
    assert "reading" in drawn.getvalue()
    assert "50%" in drawn.getvalue()
    assert drawn.getvalue().endswith("\x1b[2K"), "the bar's line is empty again"


def test_elsewhere_there_is_a_line_a_minute() -> None:
    found, drawn, clock = meters(terminal=False)
    for _ in found.watch(range(100)):
        clock.now_s += 1.3
    assert drawn.getvalue().splitlines() == ["  reading: 47 % in 61 s", "  reading: 94 % in 122 s"]


def test_work_that_is_part_of_other_work_shows_nothing_of_its_own() -> None:
    found, drawn, clock = meters(terminal=False)
    steps = []
    for both in zip(found.watch(range(3)), found.watch(range(3)), strict=True):
        steps.append(both)
        clock.now_s += 61
    assert steps == [(0, 0), (1, 1), (2, 2)]
    assert len(drawn.getvalue().splitlines()) == 2
    list(found.watch(range(3)))


def test_work_that_fails_leaves_no_bar_and_the_next_has_one() -> None:
    found, drawn, clock = meters(terminal=True)
    for _ in range(2):
        with suppress(ZeroDivisionError), found.meter("sending", 5) as done:
            clock.now_s += 2
            done()
            raise ZeroDivisionError
        assert drawn.getvalue().endswith("\x1b[2K")
        assert "sending" in drawn.getvalue()
        drawn.truncate(0)
