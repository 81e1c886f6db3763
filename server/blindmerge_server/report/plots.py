"""The plots of the report: how good every system is, and who does well on whose data.

Colours are those of Okabe and Ito and the map cividis, which stay apart for colour-blind
readers. Nothing here touches matplotlib's global state.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from blindmerge.files import replacing
from blindmerge.tasks import Metric
from blindmerge_server.report.schema import Kind, Report, SystemScores
from blindmerge_server.report.wording import KINDS, axis_of, best_merged, fold, metrics_of

__all__ = ["draw_matrix", "draw_scores", "ink_on", "plot_matrix", "plot_scores"]

_COLOURS: dict[Kind, str] = {"own": "#5b5b5b", "merged": "#0072b2", "simulation-only": "#d55e00"}
_MARKERS: dict[Kind, str] = {"own": "s", "merged": "D", "simulation-only": "o"}
_DPI = 150
_ROW_INCHES = 0.42
_NAME = 32  # characters of a system's name in a line
_COLUMN = 13  # characters of an owner's name in a line


def plot_scores(report: Report, path: Path) -> None:
    """Writes `draw_scores` as PNG.   Raises ResourceMissing if it cannot be written."""
    _write(draw_scores(report), path)


def plot_matrix(report: Report, path: Path) -> None:
    """Writes `draw_matrix` as PNG.   Raises ResourceMissing if it cannot be written."""
    _write(draw_matrix(report), path)


def draw_scores(report: Report) -> Figure:
    """Every system from the best mean to the worst, with one dot per test set.

    Left the first metric of the task, right the second; the number is the mean.
    """
    metrics = metrics_of(report)
    first = metrics[0]
    systems = sorted(report.scores, key=lambda system: first.goodness(system.mean[first.id]))
    figure = Figure(figsize=(11, 2.0 + _ROW_INCHES * len(systems)), layout="constrained")
    same = metrics[0].percent == metrics[1].percent
    left, right = figure.subplots(1, 2, sharex=same, sharey=True)
    for metric, axes in zip(metrics, (left, right), strict=True):
        for row, system in enumerate(systems):
            _row(axes, row, system, metric)
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.set_ylim(-0.6, len(systems) - 0.2)
        _beside(axes, len(systems) - 0.45, "mean", "black")
        axes.set_xlabel(axis_of(metric))
    left.set_yticks(range(len(systems)), [fold(system.name, _NAME) for system in systems])
    _mark_best(left, report, systems)
    figure.suptitle(
        f"{report.job.name}: scores on the test data of {len(report.scored)} owners "
        f"({report.protection.partition(':')[0]})"
    )
    figure.legend(handles=_legend(systems), loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_matrix(report: Report) -> Figure:
    """Rows are models, columns the owners' test data; colour and upper number are the first metric.

    An owner's model on the owner's own data has a frame.
    """
    systems = [system for system in report.scores if system.system != "own"]
    systems.sort(key=lambda system: list(KINDS).index(system.kind))
    metrics = metrics_of(report)
    colours = _colours(systems, metrics[0])
    columns = len(report.scored)
    # 0.8 inches and 13 characters of 8 points: a name never runs into the next.
    figure = Figure(figsize=(4.4 + 1.05 * columns, 2.2 + 0.5 * len(systems)), layout="constrained")
    axes = figure.subplots()
    rows = _rows(systems)
    for row, system in zip(rows, systems, strict=True):
        _cells(axes, row, system, metrics, colours)
    for title, row in _titles(systems, rows):
        axes.text(-0.5, row - 0.58, title, fontsize=9, style="italic", va="bottom")
    names = [fold(owner, _COLUMN) for owner in report.scored]
    axes.set_xticks(range(columns), names, fontsize=8)
    axes.set_yticks(rows, [fold(system.name, _NAME) for system in systems], fontsize=9)
    _mark_best(axes, report, systems)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("test data of", labelpad=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.55, columns - 0.45)
    axes.set_ylim(rows[-1] + 0.55, -1.0)
    figure.colorbar(colours, ax=axes, label=axis_of(metrics[0]), shrink=0.8)
    figure.suptitle(f"{report.job.name}: who does well on whose data")
    figure.supxlabel(
        f"upper number: {axis_of(metrics[0])}; lower: {axis_of(metrics[1])}\n"
        "frame: a model on its owner's own data; bold: best merged model",
        fontsize=9,
    )
    return figure


def _row(axes: Axes, row: int, system: SystemScores, metric: Metric) -> None:
    kind, colour = system.kind, _COLOURS[system.kind]
    mean = _scaled(metric, system.mean)
    values = [_scaled(metric, score.metrics) for score in system.scores]
    axes.plot([min(values), max(values)], [row, row], color=colour, alpha=0.35, linewidth=1.5)
    axes.plot([mean], [row], _MARKERS[kind], color=colour, markersize=11)
    # Hollow and on top, so that no test set hides behind the mean.
    axes.plot(values, [row] * len(values), "o", mfc="white", mec=colour, markersize=5, zorder=3)
    _beside(axes, row, metric.shown(system.mean[metric.id]), colour)


def _beside(axes: Axes, row: float, text: str, colour: str) -> None:
    """Text to the right of the axes."""
    axes.annotate(
        text,
        (1.0, row),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=colour,
    )


def _legend(systems: Sequence[SystemScores]) -> list[Line2D]:
    kinds = {system.kind for system in systems}
    handles = [
        Line2D(
            [], [], color=_COLOURS[kind], marker=_MARKERS[kind], ls="", ms=9, label=f"{title}, mean"
        )
        for kind, title in KINDS.items()
        if kind in kinds
    ]
    dot = Line2D(
        [], [], color="#888888", marker="o", mfc="white", ls="", ms=5, label="one owner's test data"
    )
    bold = Line2D([], [], ls="", label="bold: best merged model")
    return [*handles, dot, bold]


def _mark_best(axes: Axes, report: Report, systems: Sequence[SystemScores]) -> None:
    """The best merged model's name in bold."""
    best = best_merged(report)
    for label, system in zip(axes.get_yticklabels(), systems, strict=True):
        if system is best:
            label.set_fontweight("bold")


def _rows(systems: Sequence[SystemScores]) -> list[float]:
    """Where each row stands; a kind begins with room for its title."""
    rows: list[float] = []
    place = 0.0
    for index, system in enumerate(systems):
        if index and system.kind != systems[index - 1].kind:
            place += 0.6
        rows.append(place)
        place += 1.0
    return rows


def _titles(systems: Sequence[SystemScores], rows: Sequence[float]) -> list[tuple[str, float]]:
    found = []
    for index, system in enumerate(systems):
        if not index or system.kind != systems[index - 1].kind:
            found.append((KINDS[system.kind], rows[index]))
    return found


def _scaled(metric: Metric, scores: Mapping[str, float]) -> float:
    """A score as it is drawn."""
    return (100 if metric.percent else 1) * scores[metric.id]


def _colours(systems: Sequence[SystemScores], metric: Metric) -> ScalarMappable:
    """The map from scores to colours, brighter for better; at least one point of percent wide."""
    values = [_scaled(metric, score.metrics) for system in systems for score in system.scores]
    least = min(values) + (1 if metric.percent else 1e-9)
    colours = "cividis" if metric.higher_is_better else "cividis_r"
    return ScalarMappable(Normalize(min(values), max(*values, least)), cmap=colours)


def ink_on(background: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2.2, relative luminance).

    background: red, green, blue, 0 to 1.
    """
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in background
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


def _cells(
    axes: Axes,
    row: float,
    system: SystemScores,
    metrics: tuple[Metric, Metric],
    colours: ScalarMappable,
) -> None:
    first, second = metrics
    values = np.array([_scaled(first, score.metrics) for score in system.scores])
    backgrounds = colours.to_rgba(values)[:, :3].tolist()
    for column, (score, background) in enumerate(zip(system.scores, backgrounds, strict=True)):
        ink = ink_on(background)
        axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=background))
        if system.system == f"own:{score.data}":
            corner = (column - 0.455, row - 0.42)
            axes.add_patch(Rectangle(corner, 0.91, 0.84, fill=False, edgecolor=ink, linewidth=1.5))
        large, small = (metric.shown(score.metrics[metric.id]) for metric in (first, second))
        axes.text(column, row - 0.13, large, color=ink, ha="center", va="center")
        axes.text(column, row + 0.24, small, color=ink, ha="center", va="center", fontsize=7)


def _write(figure: Figure, path: Path) -> None:
    data = BytesIO()
    FigureCanvasAgg(figure)
    # Without the software's name in it, the same report gives the same bytes.
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    with replacing(path) as temporary:
        temporary.write_bytes(data.getvalue())
