"""The report as a page for the terminal: 80 columns, in colour or piped into a file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blindmerge.tasks import Metric
from blindmerge_server.report.schema import Layer, Masks, Report, SystemScores
from blindmerge_server.report.wording import (
    KINDS,
    axis_of,
    best_merged,
    duration,
    fold,
    listed,
    metrics_of,
    name_of,
    size,
)

__all__ = ["render"]

_WIDTH = 80
_LABEL = 25  # characters that the names of systems need to stay readable
_CELL = len("100.0/98.7")
_GAP = 1  # the column divider of the box
_MARK = "* "


def render(report: Report, console: Console, *, folder: Path | None = None) -> None:
    """Prints who could see what, the scores, and what happened on the way.

    folder: where the report's files are; None leaves out the line about them.
    Owners that do not fit into the width continue in a further table.
    """
    width = min(console.width, _WIDTH)
    owners = len(report.owners)
    chosen = report.job.methods[0].id
    style = "bold green" if report.masks else "bold yellow"
    _line(console, report.protection, width, style)
    _line(console, report.privacy, width)
    _line(console, f"{report.job.name}: {owners} owners, {name_of(chosen)}", width, "bold")
    console.print()
    for columns in _chunks(len(report.scored), width, _cell_width(report)):
        console.print(_scores(report, columns, width))
        console.print()
    metrics = metrics_of(report)
    _line(console, f"{_legend(metrics)}, on each owner's test data", width)
    if best := best_merged(report):
        _line(console, f"{_MARK}best merged model by mean {metrics[0].name}: {best.name}", width)
    console.print()
    notes = Table.grid(padding=(0, 2, 0, 0))
    notes.add_column(no_wrap=True)
    notes.add_column(overflow="fold")
    for title, text in _notes(report):
        notes.add_row(Text(title, "bold"), Text(text))
    console.print(notes, width=width)
    if folder is not None:
        # A path that is broken over two lines cannot be copied.
        for purpose, name in report.files.items():
            console.print(Text(f"{purpose}: {folder / name}"), soft_wrap=True)


def _line(console: Console, text: str, width: int, style: str = "") -> None:
    console.print(Text(text, style), width=width)


def _legend(metrics: tuple[Metric, Metric]) -> str:
    """`accuracy/macro-F1 in %, higher is better`."""
    if all(metric.percent and metric.higher_is_better for metric in metrics):
        return f"{metrics[0].name}/{metrics[1].name} in %, higher is better"
    return " / ".join(axis_of(metric) for metric in metrics)


def _cell_width(report: Report) -> int:
    systems = [(system, column) for system in report.scores for column in _columns(report)]
    return max([_CELL, *(len(_cell(report, system, column)) for system, column in systems)])


def _columns(report: Report) -> Sequence[int]:
    """-1 stands for the mean, the others are the owners."""
    return range(-1, len(report.scored))


def _chunks(owners: int, width: int, cell: int) -> Iterator[Sequence[int]]:
    """Indices of the owners in each table; the first table also holds the mean."""
    fitting = max(2, (width - _LABEL) // (cell + _GAP))
    tables = -(-(owners + 1) // fitting)
    even = -(-(owners + 1) // tables)
    slots = list(range(-1, owners))
    for start in range(0, len(slots), even):
        yield slots[start : start + even]


def _scores(report: Report, columns: Sequence[int], width: int) -> Table:
    """columns: some of `_columns`."""
    cell = _cell_width(report)
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("model", overflow="fold")
    names = ["mean" if column < 0 else report.scored[column] for column in columns]
    for name in names:
        table.add_column(Text(fold(name, cell)), justify="right", no_wrap=True, min_width=cell)
    best = best_merged(report)
    room = width - len(names) * (cell + _GAP)
    for kind, title in KINDS.items():
        systems = [system for system in report.scores if system.kind == kind]
        if systems:
            table.add_row(Text(fold(title, room), "italic"))
        for system in systems:
            mark, style = (_MARK, "bold") if system is best else ("  ", "")
            name = fold(system.name, room - len(_MARK)).replace("\n", "\n  ")
            cells = [Text(_cell(report, system, column)) for column in columns]
            table.add_row(Text(mark + name), *cells, style=style)
        table.add_section()
    return table


def _cell(report: Report, system: SystemScores, column: int) -> str:
    scores = system.mean if column < 0 else system.scores[column].metrics
    return "/".join(metric.shown(scores[metric.id]) for metric in metrics_of(report))


def _notes(report: Report) -> Iterator[tuple[str, str]]:
    yield "owners", _missing(report)
    if report.job.masks:
        yield "masks", _masks(report.job.masks)
    for method, layers in report.layers.items():
        if layers:
            yield f"{name_of(method)} layers", _fallbacks(layers)
            yield "condition", _condition(layers)
    for each in report.job.methods:
        sent = [owner.bytes_sent[each.id] for owner in report.owners if each.id in owner.bytes_sent]
        if sent:
            yield f"{name_of(each.id)} sent", _sent(sent)
    if report.adapter:
        lost = f"{100 * report.adapter.relative_error:.2g} % of the change's norm is lost"
        yield f"adapter, rank {report.adapter.rank}", lost
    yield "time", _time(report)


def _missing(report: Report) -> str:
    missing = [(owner.name, owner.missing) for owner in report.owners if owner.missing]
    if not missing:
        return f"all {len(report.owners)} are in every sum"
    return "; ".join(
        f"{name} is missing since {why.step} ({name_of(why.method)}): {why.reason}"
        for name, why in missing
        if why
    )


def _masks(masks: Masks) -> str:
    return (
        f"{masks.least_owners} of {masks.owners} owners must stay to the end; safe while at most "
        f"{masks.colluders} help the server; {masks.bits} bits"
    )


def _fallbacks(layers: Sequence[Layer]) -> str:
    total = sum(len(layer.layers) for layer in layers)
    reasons: Counter[str] = Counter()
    for layer in layers:
        if layer.fallback is not None:
            reasons[layer.fallback] += len(layer.layers)
    if not reasons:
        return f"all {total} were solved, none fell back to the average"
    why = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    return f"{reasons.total()} of {total} fell back to the average: {why}"


def _condition(layers: Sequence[Layer]) -> str:
    solved = [(layer.condition_number, layer) for layer in layers if layer.condition_number]
    if not solved:
        return "no matrix was factorised"
    largest, layer = max(solved, key=lambda pair: pair[0])
    return f"largest condition number {largest:.1e} at {layer.layers[0]}"


def _sent(sent: Sequence[int]) -> str:
    if min(sent) == max(sent):
        return f"{size(sent[0])} per owner"
    return f"{size(min(sent))} to {size(max(sent))} per owner"


def _time(report: Report) -> str:
    seconds = report.seconds
    stages = {"fetching": seconds.fetch, "fine-tuning": seconds.fine_tune}
    stages |= {name_of(name): spent for name, spent in seconds.methods.items()}
    stages |= {"comparisons": seconds.comparisons, "scoring": seconds.evaluate}
    parts = [f"{name} {duration(spent)}" for name, spent in stages.items() if spent > 0]
    return f"{duration(seconds.total)}: {listed(parts)}" if parts else duration(seconds.total)
