"""The report in the terminal, and the words and units it shares with the plots."""

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from blindmerge.tasks import Task
from blindmerge_server.report.schema import MASKS_OFF, Report
from blindmerge_server.report.table import render
from blindmerge_server.report.wording import (
    best_merged,
    duration,
    fold,
    metrics_of,
    name_of,
    size,
)
from support.reports import LONG_NAMES, make_report

FOUR = ("tweets", "products", "films", "editorials")


def page(report: Report, *, width: int = 80, colour: bool = False) -> str:
    file = io.StringIO()
    render(report, Console(file=file, width=width, force_terminal=colour))
    return file.getvalue()


def words(report: Report) -> str:
    """The page without line breaks."""
    return " ".join(page(report).split())


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("owners", range(2, 9))
def test_no_line_is_wider_than_80_columns_or_the_terminal(owners: int, width: int) -> None:
    report = make_report(LONG_NAMES[:owners], missing=LONG_NAMES[0], starved=True)
    longest = max(len(line) for line in page(report, width=width).splitlines())
    assert longest <= min(width, 80)


@pytest.mark.parametrize("task", ["single-label", "regression"])
@pytest.mark.parametrize("owners", range(2, 9))
def test_nothing_is_cut_off(owners: int, task: Task) -> None:
    report = make_report(LONG_NAMES[:owners], task=task)
    text = page(report)
    assert "…" not in text
    for system in report.scores:
        for scores in [*(score.metrics for score in system.scores), system.mean]:
            assert "/".join(m.shown(scores[m.id]) for m in metrics_of(report)) in text
    for owner in report.owners:
        for piece in fold(owner.name, 10).splitlines():
            assert piece in text


def test_every_system_has_its_row_under_its_kind() -> None:
    report = make_report(FOUR)
    lines = [line[:25].strip(" *") for line in page(report).splitlines()]
    start = lines.index("own models")
    rows = [line for line in lines[start : start + 20] if line]
    own = [name_of("own"), *(f"model of {owner}" for owner in FOUR)]
    merged = ["RegMean", "simple average", "Fisher"]
    simulated = ["ensemble of own models", "multi-task, pooled data"]
    expected = ["own models", *own, "merged from sums", *merged, "only in a simulation", *simulated]
    assert rows[: len(expected)] == expected


def test_perfect_scores_fit() -> None:
    report = make_report(FOUR)
    perfect = report.model_dump()
    for system in perfect["scores"]:
        for metrics in (*(score["metrics"] for score in system["scores"]), system["mean"]):
            metrics |= {"accuracy": 1.0, "f1": 1.0}
    text = page(Report.model_validate(perfect))
    assert text.count("100.0/100.0") == 5 * len(report.scores)
    assert max(map(len, text.splitlines())) <= 80


def test_a_pipe_gets_no_colour() -> None:
    assert "\x1b" not in page(make_report(FOUR))
    assert "\x1b" in page(make_report(FOUR), colour=True)


def test_an_ascii_terminal_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render(make_report(FOUR), Console(file=file, width=80))
    file.flush()


def test_the_top_says_whether_masks_were_on() -> None:
    for masked, words in ((True, "masks on: "), (False, MASKS_OFF)):
        report = make_report(FOUR, masked=masked)
        assert page(report).splitlines()[0].strip() == report.protection
        assert report.protection.startswith(words)


def test_masks_are_told_with_their_thresholds_if_there_are_any() -> None:
    report = make_report(FOUR)
    assert report.job.masks is not None
    expected = "3 of 4 owners must stay to the end; safe while at most 1 help the server; 64 bits"
    assert f"masks {expected}" in words(report)
    assert "must stay" not in words(make_report(FOUR, masked=False))


def test_the_best_merged_row_is_marked_and_no_other() -> None:
    report = make_report(FOUR)
    best = best_merged(report)
    assert best is not None
    merged = [system for system in report.scores if system.kind == "merged"]
    assert best.mean["accuracy"] == max(system.mean["accuracy"] for system in merged)
    marked = [line for line in page(report).splitlines() if line.startswith("* ")]
    assert len(marked) == 2
    assert marked[0].split()[1] == best.name
    assert marked[1].strip() == f"* best merged model by mean accuracy: {best.name}"


def test_of_errors_the_lowest_is_best() -> None:
    report = make_report(FOUR, task="regression")
    best = best_merged(report)
    assert best is not None
    merged = [system for system in report.scores if system.kind == "merged"]
    assert best.mean["mse"] == min(system.mean["mse"] for system in merged)
    text = words(report)
    assert f"best merged model by mean mean squared error: {best.name}" in text
    assert "mean squared error (lower is better) / Pearson's r, %, on each owner's" in text


def test_a_run_without_a_merged_model_has_no_best() -> None:
    report = make_report(FOUR)
    own = tuple(system for system in report.scores if system.kind == "own")
    text = page(report.model_copy(update={"scores": own}))
    assert "* " not in text
    assert "merged from sums" not in text


def test_a_missing_owner_is_told_with_step_and_reason() -> None:
    text = words(make_report(FOUR, missing="films"))
    assert (
        "films is missing since R2 masked input: encoder.layer.3 (RegMean): its process ended"
        in text
    )
    assert "all 4 are in every sum" in words(make_report(FOUR))


def test_layers_that_fell_back_are_told_with_the_reason() -> None:
    text = words(make_report(FOUR, starved=True))
    expected = "3 of 21 fell back to the average: 2 owner(s) had fewer than 4 x 385 rows (3)"
    assert expected in text
    assert "all 21 were solved, none fell back" in words(make_report(FOUR))


def test_the_largest_condition_number_is_told() -> None:
    report = make_report(FOUR, starved=True)
    numbers = [layer.condition_number or 0.0 for layer in report.layers["regmean"]]
    assert f"largest condition number {max(numbers):.1e} at bert." in words(report)


def test_bytes_and_seconds_are_told() -> None:
    text = words(make_report(FOUR))
    assert "RegMean sent 25.3 MiB per owner" in text  # 26.54e6 / 2^20
    assert "time 4 min 36 s: fine-tuning 1 min 36 s, RegMean 31 s, simple average 8.2 s" in text
    assert "fetching" not in text  # it took no time


def test_different_amounts_are_a_range() -> None:
    report = make_report(FOUR)
    owners = [owner.model_dump() for owner in report.owners]
    owners[0]["bytes_sent"]["average"] = 1024
    changed = Report.model_validate(report.model_dump() | {"owners": tuple(owners)})
    assert "simple average sent 1.0 KiB to 171.7 MiB per owner" in words(changed)


def test_paths_of_files_stay_in_one_piece() -> None:
    folder = Path("/a-rather-long-folder" * 6)
    file = io.StringIO()
    render(make_report(FOUR), Console(file=file, width=80), folder=folder)
    assert f"report: {folder}/report.json\n" in file.getvalue()


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 * 2**30, "5.0 GiB")],
)
def test_sizes(amount: int, text: str) -> None:
    assert size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (125, "2 min 5 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_second_variant_of_a_method_keeps_its_id() -> None:
    assert name_of("regmean") == "RegMean"
    assert name_of("regmean-2") == "regmean-2"


@given(st.text("ab- ", max_size=60), st.integers(3, 30))
def test_folding_loses_no_letter_and_keeps_the_width(name: str, width: int) -> None:
    folded = fold(name, width)
    assert all(len(line) <= width for line in folded.splitlines())
    assert re.sub(r"\s", "", folded) == re.sub(r"\s", "", name)
