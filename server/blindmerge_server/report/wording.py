"""Names, numbers and units as the table and the plots write them."""

import re
from collections.abc import Mapping, Sequence

from blindmerge.tasks import METRICS, Metric
from blindmerge_server.report.schema import Kind, Report, SystemScores

__all__ = [
    "KINDS",
    "axis_of",
    "best_merged",
    "duration",
    "fold",
    "listed",
    "metrics_of",
    "name_of",
    "size",
]

_NAMES: Mapping[str, str] = {
    "own": "each on its own data",
    "average": "simple average",
    "task-arithmetic": "task arithmetic",
    "fisher": "Fisher",
    "regmean": "RegMean",
    "regmean++": "RegMean++",
    "progressive": "progressive RegMean",
    "ties": "TIES",
    "ensemble": "ensemble of own models",
    "multi-task": "multi-task, pooled data",
}

KINDS: Mapping[Kind, str] = {
    "own": "own models",
    "merged": "merged from sums",
    "simulation-only": "only in a simulation",
}
"""What people call a kind of system, in the order in which they are shown."""


def name_of(system: str) -> str:
    """What people call the system with this id; a method's second variant keeps its id."""
    if system.startswith("own:"):
        return f"model of {system.removeprefix('own:')}"
    return _NAMES.get(system, system)


def metrics_of(report: Report) -> tuple[Metric, Metric]:
    """The two scores that are shown."""
    first, second, *_ = METRICS[report.job.task]
    return first, second


def axis_of(metric: Metric) -> str:
    """What stands beside its numbers."""
    better = "" if metric.higher_is_better else " (lower is better)"
    return f"{metric.name}{', %' if metric.percent else ''}{better}"


def best_merged(report: Report) -> SystemScores | None:
    """The merged model with the best mean of the first metric, then of the second."""
    merged = [system for system in report.scores if system.kind == "merged"]
    if not merged:
        return None
    metrics = metrics_of(report)
    return max(merged, key=lambda system: [m.goodness(system.mean[m.id]) for m in metrics])


def size(size_bytes: int) -> str:
    """Bytes in the unit that leaves a number below 1024."""
    amount = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def fold(name: str, width: int) -> str:
    """The name in lines of at most `width` characters, broken after spaces and hyphens."""
    lines = [""]
    for piece in re.findall(r"[^\s-]*(?:-|\s+|$)", name):
        rest = piece
        if len(lines[-1]) + len(rest.rstrip()) <= width:
            lines[-1] += rest
            continue
        if lines[-1]:
            lines.append("")
        while len(rest.rstrip()) > width:
            lines[-1] = rest[:width]
            lines.append("")
            rest = rest[width:]
        lines[-1] = rest
    return "\n".join(line.rstrip() for line in lines if line.strip())
