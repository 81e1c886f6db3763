"""What masks cost: the embedded federation, merged with and without them.

    python tests/bench/masks.py [--cache DIR] [--out FILE]

Both runs use the same fine-tuned models, so merged weights may differ by the rounding of the
ring alone; both times are of the same process on the same machine.
"""

import argparse
import json
import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from blindmerge.checkpoint import Checkpoint
from blindmerge_server.report.schema import Report
from blindmerge_server.simulate.federation import default_federation, read_federation
from blindmerge_server.simulate.run import simulate
from blindmerge_server.simulate.watch import Watch

METHODS = ("regmean", "average", "fisher")


@dataclass(frozen=True)
class Cost:
    """Of one method.

    difference: largest |with - without| of a merged tensor, relative to its largest number.
    seconds, sent_bytes: with masks and without; of the slowest owner.
    """

    method: str
    difference: float
    seconds: tuple[float, float]
    sent_bytes: tuple[int, int]


def federation(method: str, masks: str, folder: Path) -> Path:
    """The embedded federation with one method."""
    lines = []
    for line in default_federation().read_text(encoding="utf-8").splitlines():
        if line.startswith("method ="):
            line = f'method = "{method}"\nmasks = "{masks}"'
        if line.startswith("[[owner]]"):
            line += f"\nallow_masks_off = {str(masks == 'off').lower()}"
        if not line.startswith("compare ="):
            lines.append(line)
    file = folder / f"{method}-{masks}.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def difference(one: Path, other: Path) -> float:
    """The largest relative difference of two checkpoints' tensors."""
    first, second = Checkpoint(one), Checkpoint(other)
    largest = 0.0
    for block in first.manifest.blocks:
        ours, theirs = first.read(block.shapes), second.read(block.shapes)
        for name, tensor in ours.items():
            apart = float(np.abs(tensor - theirs[name]).max())
            largest = max(largest, apart / float(np.abs(theirs[name]).max()))
    return largest


def cost(method: str, folder: Path, cache: Path) -> Cost:
    """Runs both."""
    reports: dict[str, Report] = {}
    for masks in ("on", "off"):
        described = read_federation(federation(method, masks, folder))
        reports[masks] = simulate(described, folder / f"{method}-{masks}", cache, Watch())
    sent = {
        masks: max(owner.bytes_sent[method] for owner in report.owners)
        for masks, report in reports.items()
    }
    return Cost(
        method=method,
        difference=difference(folder / f"{method}-on/merged", folder / f"{method}-off/merged"),
        seconds=(reports["on"].seconds.methods[method], reports["off"].seconds.methods[method]),
        sent_bytes=(sent["on"], sent["off"]),
    )


def table(costs: list[Cost]) -> str:
    """Markdown."""
    lines = [
        "| method | largest relative difference | seconds, on / off | MB sent, on / off |",
        "|---|---|---|---|",
    ]
    for each in costs:
        seconds = " / ".join(f"{s:.1f}" for s in each.seconds)
        sent = " / ".join(f"{size / 1e6:.0f}" for size in each.sent_bytes)
        lines.append(f"| {each.method} | {each.difference:.1e} | {seconds} | {sent} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="What masks cost.")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/blindmerge"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="masks-") as folder:
        costs = [cost(method, Path(folder), options.cache.expanduser()) for method in METHODS]
    record = {"processor": platform.processor(), "costs": [asdict(each) for each in costs]}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "masks.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "masks.md").write_text(table(costs) + "\n")
    print(table(costs))


if __name__ == "__main__":
    main()
