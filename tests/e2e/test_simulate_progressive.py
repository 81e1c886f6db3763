"""A progressive job from end to end: one secure sum per group, each on what came before."""

import json
from pathlib import Path

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.merge import Progressive
from support.command import blindmerge
from support.federations import pico_federation

JOB = """
method = { name = "progressive", rows_factor = 0.0, ridge = 0.1, fisher_share = 0.25 }
compare = []
"""
OWNERS = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one simulation."""
    folder = tmp_path_factory.mktemp("progressive")
    pico_federation(folder, OWNERS, JOB)
    process = blindmerge(
        "simulate", "federation.toml", "--out", "out", cwd=folder, cache=folder / "cache"
    )
    assert process.returncode == 0, process.stderr
    return folder


def test_there_is_one_sum_per_group_in_forward_order(done: Path) -> None:
    report = json.loads((done / "out" / "report.json").read_text())
    blocks = Progressive().blocks_of(Checkpoint(done / "out" / "merged").manifest)
    sums = report["sums"]["progressive"]
    assert [each["blocks"] for each in sums] == [[block.name] for block in blocks]
    # Under masks, each with an account that everybody can check.
    assert {tuple(each["owners"]) for each in sums} == {OWNERS}
    assert len({each["transcript"] for each in sums}) == len(blocks)
    layers = report["layers"]["progressive"]
    assert [row["block"] for row in layers] == [block.name for block in blocks if block.groups]
    assert {row["fallback"] for row in layers} == {None}


def test_what_is_averaged_is_the_mean_and_the_rest_is_not(done: Path) -> None:
    merged = Checkpoint(done / "out" / "merged")
    folders = sorted((done / "cache" / "models").iterdir())
    owners = [Checkpoint(path).read(merged.shapes) for path in folders]
    found = merged.read(merged.shapes)
    means = {mean.name for block in merged.manifest.blocks for mean in block.means}
    for name, array in found.items():
        # The cache also holds the multi-task model: some three of the four are the owners.
        distance = min(
            np.abs(np.mean([w for k, w in enumerate(own) if k != out], axis=0) - array).max()
            for own in [[weights[name] for weights in owners]]
            for out in range(len(own))
        )
        # Masks and float32 round in the seventh digit of numbers below 2.
        assert (distance < 1e-6) == (name in means), name
