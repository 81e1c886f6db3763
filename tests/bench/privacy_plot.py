"""Plot and tables of `privacy_quality.py` and `membership.py`, from their JSON files.

python tests/bench/privacy_plot.py [--out DIR]
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["plot", "table"]

_MODES = {  # and their markers
    "statistics": "o",
    "end-to-end": "s",
    "end-to-end average": "x",
    "end-to-end task arithmetic": "^",
}


def series(found: Mapping[str, Any], mode: str) -> list[tuple[float, Mapping[str, float]]]:
    """epsilon and scores of a mode, by epsilon."""
    named = [(name.rpartition(" "), scores) for name, scores in found.items()]
    pairs = [(float(end), scores) for (start, _, end), scores in named if start == mode]
    return sorted(pairs, key=lambda pair: pair[0])


def plot(found: Mapping[str, Any], file: Path) -> None:
    """Accuracy and macro-F1 against epsilon, with average and RegMean without noise as lines."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axis, (score, name) in zip(
        axes, (("accuracy", "accuracy"), ("f1", "macro-F1")), strict=True
    ):
        for mode, marker in _MODES.items():
            points = series(found, mode)
            if points:
                xs, ys = zip(*((x, 100 * each[score]) for x, each in points), strict=True)
                axis.plot(xs, ys, marker=marker, label=_label(mode))
        for line, style in (("off", "--"), ("average", ":")):
            label = "RegMean, no noise" if line == "off" else "simple average"
            axis.axhline(100 * found[line][score], color="black", linestyle=style, label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axis.set_xlabel(f"epsilon at delta {found['setting']['delta']:g}, per example")
        axis.set_ylabel(f"{name}, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def table(found: Mapping[str, Any]) -> str:
    """Markdown: accuracy / macro-F1 in %, by epsilon and mode."""
    modes = {mode: dict(series(found, mode)) for mode in _MODES}
    epsilons = sorted({epsilon for points in modes.values() for epsilon in points})
    lines = [f"| epsilon | {' | '.join(map(_label, modes))} |", "|---" * (len(modes) + 1) + "|"]
    for epsilon in epsilons:
        cells = (_both(points.get(epsilon)) for points in modes.values())
        lines.append(f"| {epsilon:g} | {' | '.join(cells)} |")
    without = f"RegMean {_both(found['off'])}, simple average {_both(found['average'])}"
    return "\n".join([*lines, "", f"Without noise: {without}."]) + "\n"


def _label(mode: str) -> str:
    return f"RegMean, {mode}" if mode in ("statistics", "end-to-end") else mode


def _both(scores: Mapping[str, float] | None) -> str:
    return f"{100 * scores['accuracy']:.1f} / {100 * scores['f1']:.1f}" if scores else "-"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Plot of quality against epsilon.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    folder = parser.parse_args().out
    found = json.loads((folder / "privacy-emotion.json").read_text())
    plot(found, folder / "privacy-emotion.png")
    (folder / "privacy-emotion.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
