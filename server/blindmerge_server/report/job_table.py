"""The report of a job over the network as a page for the terminal, 80 columns wide."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from blindmerge.tasks import METRICS
from blindmerge_server.report.job_report import JobReport
from blindmerge_server.report.wording import duration, name_of, size

__all__ = ["render_job"]

_WIDTH = 80


def render_job(report: JobReport, folder: Path, console: Console) -> None:
    """Prints who was in the sums, what was sent and where the results are.   folder: theirs."""
    width = min(console.width, _WIDTH)
    console.print(f"\n[bold]{report.job}[/]: {name_of(str(report.method['name']))}")
    console.print(f"[bold green]{report.protection}[/]", width=width)
    console.print(report.privacy, width=width, markup=False)
    console.print()
    table = Table(box=None, pad_edge=False)
    published = any(owner.published for owner in report.owners)
    metrics = METRICS[report.task][:2] if published else ()
    numbers = ["sent", *(f"{metric.name}{', %' if metric.percent else ''}" for metric in metrics)]
    for column in ("owner", *numbers, ""):
        table.add_column(column, justify="right" if column in numbers else "left")
    for owner in report.owners:
        scores = [
            metric.shown(owner.published[metric.id]) if metric.id in owner.published else "-"
            for metric in metrics
        ]
        table.add_row(owner.name, size(owner.bytes_sent), *scores, owner.missing or "in every sum")
    console.print(table, width=width)
    fallbacks = sum(layer.fallback is not None for layer in report.layers)
    console.print(
        f"\n{len(report.sums)} sum(s), {len(report.layers)} groups of layers solved", end=""
    )
    console.print(f", {fallbacks} of them averaged" if fallbacks else "")
    console.print(f"took {duration(report.seconds)}")
    if report.heads_kept:
        console.print(
            "[bold yellow]NO TRAINED HEAD[/] in `merged`: it has the base's. Every owner has the "
            "merged model under its own head.",
            width=width,
        )
    for what in ("merged", "report.json", "transcripts"):
        console.print(f"  {folder / what}", soft_wrap=True)
