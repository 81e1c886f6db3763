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

_MODES = {"statistics": "o", "end-to-end": "s", "end-to-end average": "x"}  # and their markers


def series(found: Mapping[str, Any], mode: str) -> list[tuple[float, Mapping[str, float]]]:
    """epsilon and scores of a mode, by epsilon."""
    named = [(name.rpartition(" "), scores) for name, scores in found.items()]
    pairs = [(float(end), scores) for (start, _, end), scores in named if start == mode]
    return sorted(pairs, key=lambda pair: pair[0])


def plot(found: Mapping[str, Any], file: Path) -> None:
    """Accuracy and macro-F1 against epsilon, with average and RegMean without noise as lines."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (score, name) in zip(
        axes, (("accuracy", "accuracy"), ("f1", "macro-F1")), strict=True
    ):
        for mode, marker in _MODES.items():
            points = series(found, mode)
            if points:
                xs, ys = zip(*((x, 100 * each[score]) for x, each in points), strict=True)
                axis.plot(
                    xs,
                    ys,
                    marker=marker,
                    label=f"RegMean, {mode}" if "average" not in mode else mode,
                )
        for line, style in (("off", "--"), ("average", ":")):
            label = "RegMean, no noise" if line == "off" else "simple average"
            axis.axhline(100 * found[line][score], color="black", linestyle=style, label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axis.set_xlabel(f"epsilon at delta {found['setting']['delta']:g}, per example")
        axis.set_ylabel(f"{name}, %")
    axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def table(found: Mapping[str, Any]) -> str:
    """Markdown: accuracy / macro-F1 in %."""
    lines = ["| line | accuracy / macro-F1 |", "|---|---|"]
    names = {"off": "RegMean, no noise", "average": "simple average", "clipped": None}
    for name, scores in found.items():
        shown = names.get(name, name)
        if name != "setting" and shown is not None:
            mode, _, epsilon = shown.rpartition(" ")
            text = shown if name in names else f"{mode}, epsilon {epsilon}"
            lines.append(f"| {text} | {100 * scores['accuracy']:.1f} / {100 * scores['f1']:.1f} |")
    return "\n".join(lines) + "\n"


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
