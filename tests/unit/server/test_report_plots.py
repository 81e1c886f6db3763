"""The plots: everything is named, nothing overlaps, digits can be read."""

import errno
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from blindmerge.errors import ResourceMissing
from blindmerge.tasks import Task
from blindmerge_server.report.plots import (
    draw_matrix,
    draw_scores,
    ink_on,
    plot_matrix,
    plot_scores,
)
from blindmerge_server.report.schema import Report
from blindmerge_server.report.wording import metrics_of
from support.reports import LONG_NAMES, make_report

FOUR = ("tweets", "products", "films", "editorials")
DRAW = {"scores": draw_scores, "matrix": draw_matrix}


def texts(figure: Figure) -> list[str]:
    """All that is written in the figure, without line breaks and spaces."""
    found = figure.findobj(lambda artist: isinstance(artist, Text))
    return ["".join(text.get_text().split()) for text in found if isinstance(text, Text)]


def outside(figure: Figure) -> set[Text]:
    """Labels of ticks beyond the ends of their axis, which exist and are not drawn."""
    found: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:
                    found |= {tick.label1, tick.label2}
    return found


def squeezed(names: Sequence[str]) -> set[str]:
    return {"".join(name.split()) for name in names}


@pytest.mark.parametrize("owners", [FOUR[:2], FOUR, LONG_NAMES])
def test_the_scores_name_every_system_with_its_means(owners: Sequence[str]) -> None:
    report = make_report(owners)
    written = texts(draw_scores(report))
    assert squeezed([system.name for system in report.scores]) <= set(written)
    for system in report.scores:
        for metric in metrics_of(report):
            assert metric.shown(system.mean[metric.id]) in written
    assert {"accuracy,%", "macro-F1,%"} <= set(written)


@pytest.mark.parametrize("owners", [FOUR[:2], FOUR, LONG_NAMES])
def test_the_matrix_names_every_model_and_owner_with_every_score(owners: Sequence[str]) -> None:
    report = make_report(owners)
    written = texts(draw_matrix(report))
    models = [system for system in report.scores if system.system != "own"]
    assert squeezed([system.name for system in models]) <= set(written)
    assert squeezed(owners) <= set(written)
    for system in models:
        for score in system.scores:
            for metric in metrics_of(report):
                assert metric.shown(score.metrics[metric.id]) in written


def test_of_errors_the_lowest_is_on_top_and_brightest() -> None:
    report = make_report(FOUR, task="regression")
    (left, _) = draw_scores(report).axes
    assert left.get_xlabel() == "mean squared error (lower is better)"
    means = [line.get_xdata() for line in left.get_lines() if line.get_marker() in ("s", "D", "o")]
    rows = [float(np.asarray(each)[0]) for each in means if len(np.asarray(each)) == 1]
    assert rows == sorted(rows, reverse=True)


def test_the_scores_have_one_dot_per_test_set_at_its_place() -> None:
    report = make_report(FOUR)
    left, right = draw_scores(report).axes
    ordered = sorted(report.scores, key=lambda system: system.mean["accuracy"])
    for axes, measure in ((left, "accuracy"), (right, "f1")):
        dots = [
            line
            for line in axes.get_lines()
            if line.get_marker() == "o" and len(np.asarray(line.get_xdata())) == len(FOUR)
        ]
        assert len(dots) == len(ordered)
        for row, (line, system) in enumerate(zip(dots, ordered, strict=True)):
            expected = [100 * score.metrics[measure] for score in system.scores]
            np.testing.assert_array_equal(np.asarray(line.get_xdata()), expected)
            np.testing.assert_array_equal(np.asarray(line.get_ydata()), [row] * len(FOUR))


@pytest.mark.parametrize("kind", sorted(DRAW))
@pytest.mark.parametrize("task", ["single-label", "regression"])
@pytest.mark.parametrize("owners", [FOUR[:2], FOUR, LONG_NAMES])
def test_no_text_overlaps_another_or_leaves_the_picture(
    kind: str, owners: Sequence[str], task: Task
) -> None:
    figure = DRAW[kind](make_report(owners, task=task))
    figure.draw_without_rendering()
    unseen = outside(figure)
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(lambda artist: isinstance(artist, Text))
        if isinstance(text, Text) and text.get_visible() and text not in unseen
        if text.get_text().strip()
    ]
    for name, box in boxes:
        assert min(box.x0, box.y0) >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
    for (one, first), (two, second) in combinations(boxes, 2):
        # Half a pixel is below what antialiasing shows.
        apart = (
            first.x1 < second.x0 + 0.5
            or second.x1 < first.x0 + 0.5
            or first.y1 < second.y0 + 0.5
            or second.y1 < first.y0 + 0.5
        )
        assert apart, f"{one!r} overlaps {two!r}"


def test_digits_have_enough_contrast_on_every_colour_of_the_map() -> None:
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 1, 256))[:, :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    for colour, background in zip(colours.tolist(), luminance, strict=True):
        ink = 1.0 if ink_on(colour) == "white" else 0.0
        light, dark = max(ink, background), min(ink, background)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, level AA


@pytest.mark.parametrize("plot", [plot_scores, plot_matrix])
def test_the_picture_opens_and_is_the_same_every_time(plot: object, tmp_path: Path) -> None:
    assert callable(plot)
    for name in ("one.png", "two.png"):
        plot(make_report(FOUR), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    picture = imread(tmp_path / "one.png")
    assert picture.ndim == 3
    assert picture.min() < 0.3 < 0.9 < picture.max()


def test_equal_scores_can_be_drawn(tmp_path: Path) -> None:
    dumped = make_report(FOUR).model_dump()
    for system in dumped["scores"]:
        for metrics in (*(score["metrics"] for score in system["scores"]), system["mean"]):
            metrics |= {"accuracy": 1.0, "f1": 1.0}
    report = Report.model_validate(dumped)
    plot_scores(report, tmp_path / "scores.png")
    plot_matrix(report, tmp_path / "matrix.png")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceMissing, match="the disk is full"):
        plot_scores(make_report(FOUR), tmp_path / "scores.png")
    assert not list(tmp_path.iterdir())
