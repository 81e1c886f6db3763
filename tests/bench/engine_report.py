"""Results of `engine.py`, as a table."""

from dataclasses import dataclass

__all__ = ["Results", "Row", "table"]


@dataclass(frozen=True)
class Row:
    """Ours against another: medians of the ratios of time, and the ratio of peak memory.

    seconds: by the clock.   cpu_seconds: of all threads.
    memory: beyond model and inputs, if it was measured.
    """

    what: str
    ours: str
    other: str
    seconds: float
    cpu_seconds: float
    memory: float | None


@dataclass(frozen=True)
class Results:
    """All that was measured.

    threads: of each contestant.
    layers, tokens: of the model, and that were collected over, where time was measured.
    server_memory: its peak with 50 owners, times that with 5.
    residuals: ours and of a float32 inverse, by condition number.
    upload: of an owner, as multiples.   runs: by contestant, the first to warm up.
    """

    machine: dict[str, object]
    threads: int
    layers: int
    tokens: int
    rounds: int
    rows: list[Row]
    server_memory: float | None
    residuals: dict[str, tuple[float, float]]
    upload: dict[str, float]
    runs: dict[str, list[dict[str, float]]]


def table(results: Results) -> str:
    """Markdown."""
    where = results.machine
    lines = [
        f"{where['processor']}, {where['cores']} cores (load {where['load']}), "
        f"{results.threads} thread(s); MPNet-base, {results.layers} of 12 layers, "
        f"{results.tokens:,} tokens; "
        f"torch {where['torch']}, numpy {where['numpy']}, "
        f"{where['peer']}. Medians of {results.rounds} rounds in turns.",
        "",
        "| what | ours | against | time | CPU time | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.ours} | {row.other} | {row.seconds:.2f} x | {row.cpu_seconds:.2f} x "
        f"| {_times(row.memory)} |"
        for row in results.rows
    ]
    lines += [
        "",
        f"Peak memory of the server with 50 owners is {_times(results.server_memory)} that with 5.",
        "",
        "| condition number | residual of ours | of a float32 inverse |",
        "|---|---|---|",
        *(f"| {at} | {a:.1e} | {b:.1e} |" for at, (a, b) in results.residuals.items()),
        "",
        "| upload of an owner | times the peers' |",
        "|---|---|",
        *(f"| {name} | {ratio:.2f} |" for name, ratio in results.upload.items()),
    ]
    return "\n".join(lines)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"
