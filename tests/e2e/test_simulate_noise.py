"""A federation whose owners train with noise and send statistics with noise, under masks."""

import json
from pathlib import Path

import numpy as np

from blindmerge.statistic import Array
from support.command import blindmerge
from support.federations import pico_federation
from support.jobs import weights_of

NOISE = """[noise]
mode = "end-to-end"
epsilon = 8.0
layers = "all"
"""
JOB = """method = { name = "regmean", rows_factor = 0.0 }
compare = ["average"]
examples = 96"""


def merged_with(folder: Path, method: str) -> dict[str, Array]:
    """What a simulation with noise merges by this method; the models come from one cache."""
    file = pico_federation(folder / "federation", job=f"method = {method}\ncompare = []")
    file.write_text(file.read_text() + NOISE)
    out = folder / "out"
    done = blindmerge("simulate", file, "--out", out, cwd=folder, cache=folder.parent / "cache")
    assert done.returncode == 0, done.stderr
    return weights_of(out / "merged")


def test_task_arithmetic_scales_the_noisy_sum_that_the_average_divides(tmp_path: Path) -> None:
    mean = merged_with(tmp_path / "mean", '"average"')
    scaled = merged_with(tmp_path / "scaled", '{ name = "task-arithmetic", scale = 0.5 }')
    (folder,) = (tmp_path / "cache" / "bases").iterdir()
    for name, base in weights_of(folder).items():
        expected = base + 0.5 * 3 * (mean[name] - base)  # of three owners
        # Both were rounded to float32, by 2^-24; the ring is off by 1.5 * 2^-48 in a sum.
        bound = 2.0**-24 * (1.5 * np.abs(mean[name]) + np.abs(scaled[name])) + 2.0**-46
        assert (np.abs(scaled[name] - expected) <= bound).all(), name
    assert any((mean[name] != scaled[name]).any() for name in mean)


def test_noise_in_training_and_statistics_under_masks(tmp_path: Path) -> None:
    file = pico_federation(tmp_path, job=JOB)
    file.write_text(file.read_text() + NOISE)
    done = blindmerge("simulate", file, "--out", "out", cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["privacy"].startswith("noise: (8, 1e-06) per example for everything that left")
    assert "Not covered: hyper-parameter search" in " ".join(done.stdout.split())
    assert "this noise drowns the statistics" in " ".join((done.stdout + done.stderr).split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    for layer in report["layers"]["regmean"]:
        assert layer["fallback"] is None, "statistics were there, and could be solved"
        # The public number that stands for the rows, of three owners: 96 texts of 16 tokens.
        assert layer["rows"] in (3 * 96 * 16, 3 * 96)
