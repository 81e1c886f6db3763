"""What the network costs: MiniLM merged by three hosts and a server, and the same in a simulation.

    PYTHONPATH=tests python tests/bench/network.py [--cache DIR] [--out DIR]

Needs root, for network namespaces. Both use the same fine-tuned models and the same plan; seconds
of an exchange are those between the first request and the last answer, at the server.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.machine import processor
from blindmerge.checkpoint import Checkpoint
from blindmerge.statistic import Array
from blindmerge_server.simulate.apps import run_in_flower
from blindmerge_server.simulate.federation import default_federation, read_federation
from blindmerge_server.simulate.setting import read_setting
from blindmerge_server.simulate.watch import Watch
from support.material import EMBEDDED_OWNERS, minilm_material
from support.networked import networked

METHOD = "regmean"


@dataclass(frozen=True)
class Run:
    """exchanges: seconds of each.   sent_bytes: of masked numbers and messages, by owner.

    wire_bytes: that the kernel counted on each owner's way out, headers included.
    total_s: of the whole job, without fine-tuning.   merged: the model.
    """

    exchanges: dict[str, float]
    sent_bytes: dict[str, int]
    wire_bytes: dict[str, int]
    total_s: float
    merged: Mapping[str, Array]


def in_simulation(cache: Path, work: Path) -> Run:
    """In one process per owner, through Flower's simulation."""
    federation = read_federation(default_federation())
    owners = tuple(owner for owner in federation.owners if owner.name in EMBEDDED_OWNERS)
    job = federation.job.model_copy(update={"compare": ()})
    federation = federation.model_copy(update={"owners": owners, "job": job})
    setting = read_setting(federation, cache, work, print)
    for pupil in setting.pupils:
        pupil.fine_tuned()
    began_s = time.monotonic()
    merged = {METHOD: work / "merged"}
    record = run_in_flower(setting, merged, Watch()).jobs[METHOD]
    total_s = time.monotonic() - began_s
    model = _read(merged[METHOD])
    return Run(dict(record.seconds), dict(record.sent_bytes), {}, total_s, model)


def over_the_network(cache: Path, work: Path) -> Run:
    """Between hosts with TLS, a gateway and a node each; processes are up before it begins."""
    material = minilm_material(cache, work)
    option = '{ name = "regmean", ridge = 0.1, weighting = "equal" }'
    with networked(work, material, option) as (network, federation):
        for name in federation.names:
            federation.wait_for(name, "connected to")
        before = {name: network.sent_bytes(name) for name in federation.names}
        began_s = time.monotonic()
        done = federation.merge(timeout_s=3600)
        if done.returncode != 0:
            raise SystemExit(done.stdout + done.stderr)
        total_s = time.monotonic() - began_s
        wire = {name: network.sent_bytes(name) - before[name] for name in federation.names}
        print(done.stdout)
        job = federation.server.jobs / "my-job-1"
        report = json.loads((job / "report.json").read_text())
        sent = {owner["name"]: owner["bytes_sent"] for owner in report["owners"]}
        return Run(report["exchanges"], sent, wire, total_s, _read(job / "merged"))


def _read(folder: Path) -> Mapping[str, Array]:
    checkpoint = Checkpoint(folder)
    return checkpoint.read(checkpoint.shapes)


def difference(one: Run, other: Run) -> float:
    """The largest between their merged models, of the largest number of its tensor."""
    return max(
        float(np.abs(tensor - other.merged[name]).max() / np.abs(tensor).max())
        for name, tensor in one.merged.items()
    )


def table(simulated: Run, networked: Run) -> str:
    """Both, in Markdown."""
    lines = ["| | simulation | network |", "|---|---|---|"]
    for step, seconds in networked.exchanges.items():
        lines.append(f"| {step} | {simulated.exchanges[step]:.1f} s | {seconds:.1f} s |")
    sums = (sum(run.exchanges.values()) for run in (simulated, networked))
    lines.append("| all exchanges | " + " | ".join(f"{each:.0f} s" for each in sums) + " |")
    lines.append(f"| the job | {simulated.total_s:.0f} s | {networked.total_s:.0f} s |")
    for name, sent in networked.sent_bytes.items():
        wire = networked.wire_bytes[name]
        lines.append(
            f"| sent by {name} | {simulated.sent_bytes[name] / 1e6:.1f} MB "
            f"| {sent / 1e6:.1f} MB; on the wire {wire / 1e6:.1f} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs both, prints the table, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/blindmerge"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    runs = {}
    for kind in (in_simulation, over_the_network):
        with tempfile.TemporaryDirectory() as work:
            runs[kind.__name__] = kind(options.cache.expanduser(), Path(work))
    simulated, network = runs.values()
    apart = difference(simulated, network)
    same = (
        "are the same, bit by bit" if apart == 0 else f"differ by {apart:.0e} of a tensor's maximum"
    )
    lines = [
        f"{processor()}, {os.cpu_count()} cores for all hosts.",
        "",
        table(simulated, network),
        "",
        f"The merged models {same}.",
    ]
    print(*lines, sep="\n")
    (options.out / "network.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
