"""Results of `secagg.py`, as a table and as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS = "blindmerge"


@dataclass(frozen=True)
class Rates:
    """Who masks how fast.   seconds: of every run.   megabytes_per_second: input times
    keystreams, eight bytes a number.   speed_of_ours: times that of the peer, run by run.
    """

    elements: int
    seconds: list[dict[str, float]]
    megabytes_per_second: dict[str, float]
    speed_of_ours: dict[str, float]
    peak_extra_bytes: dict[str, int]


@dataclass(frozen=True)
class Growth:
    """One owner's upload, and taking the masks off the sum without a tenth of the owners.

    seconds: of every run, (upload, unmask).   upload_ns, unmask_ns: per element and keystream.
    ratio: of the latter to the former, run by run.   peak_extra_bytes: of the upload.
    """

    owners: int
    lost: int
    elements: int
    keystreams: int
    seconds: list[tuple[float, float | None]]
    upload_ns: float
    unmask_ns: float | None
    ratio: float | None
    peak_extra_bytes: int

    @property
    def upload_seconds(self) -> float:
        """The median."""
        return median(run[0] for run in self.seconds)

    @property
    def unmask_seconds(self) -> float | None:
        """The median, if it was measured."""
        times = [run[1] for run in self.seconds if run[1] is not None]
        return median(times) if times else None


@dataclass(frozen=True)
class Results:
    """All that was measured."""

    repeats: int
    machine: dict[str, object]
    rates: list[Rates]
    growth: list[Growth]


def table(results: Results) -> str:
    """Markdown."""
    where = results.machine
    lines = [
        f"{where['processor']}, {where['cores']} cores, one thread; {where['openssl']}, numpy "
        f"{where['numpy']}, flwr {where['flwr']}. Medians of {results.repeats} runs in turns.",
        "",
        "| masks | numbers | MB/s of input per neighbour | blindmerge is | peak extra memory |",
        "|---|---|---|---|---|",
    ]
    for rate in results.rates:
        for name, speed in rate.megabytes_per_second.items():
            peak = rate.peak_extra_bytes[name] / (8 * rate.elements)
            lines.append(
                f"| {name} | {rate.elements:,} | {speed:,.0f} "
                f"| {rate.speed_of_ours[name]:.2f} x as fast "
                f"| {_mega(rate.peak_extra_bytes[name])} ({peak:.3g} x input) |"
            )
    lines += [
        "",
        "| owners (dropped) | numbers | upload, s | its peak extra memory | upload, ns "
        "| unmasking, ns | unmasking / upload |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results.growth:
        server = "- | - |"
        if row.unmask_ns is not None and row.ratio is not None:
            server = f"{row.unmask_ns:.2f} | {row.ratio:.2f} |"
        lines.append(
            f"| {row.owners} ({row.lost}) | {row.elements:,} | {row.upload_seconds:.3f} "
            f"| {_mega(row.peak_extra_bytes)} | {row.upload_ns:.2f} | {server}"
        )
    lines += ["", "ns: per number and keystream, all other work of the step included."]
    return "\n".join(lines)


def _mega(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB"


def draw(results: Results) -> Figure:
    """Growth with owners on the left, peers on the right."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_growth(left, results.growth)
    rate = results.rates[-1]
    names = list(reversed(rate.megabytes_per_second))
    speeds = [rate.megabytes_per_second[name] for name in names]
    colours = ["#1f6fb2" if name == OURS else "#b9bec4" for name in names]
    bars = right.barh(names, speeds, color=colours)
    right.bar_label(bars, fmt=" {:,.0f}")
    right.margins(x=0.15)
    right.xaxis.set_major_formatter("{x:,.0f}")
    right.set_xlabel("MB of input per second and neighbour; more is better")
    right.set_title(f"Masking {rate.elements:,} numbers", loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_growth(axes: Axes, rows: Sequence[Growth]) -> None:
    for place, elements in enumerate(sorted({row.elements for row in rows})):
        some = [row for row in rows if row.elements == elements]
        owners = [row.owners for row in some]
        colour = f"C{place}"
        uploads = [row.upload_seconds for row in some]
        axes.plot(owners, uploads, "o-", color=colour, label=f"upload, {elements:,} numbers")
        unmasks = [row.unmask_seconds for row in some if row.unmask_seconds is not None]
        if len(unmasks) == len(owners):
            label = f"unmasking, {elements:,} numbers"
            axes.plot(owners, unmasks, "s--", color=colour, mfc="white", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({row.owners for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_xlabel("owners (unmasking: a tenth of them dropped out)")
    axes.set_ylabel("seconds, one thread")
    axes.set_title("Growth with the owners", loc="left")
    axes.set_ylim(top=30 * max(row.upload_seconds for row in rows))  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc="upper left")
