"""A federation whose owners train with noise and send statistics with noise, under masks."""

import json
from pathlib import Path

from support.command import blindmerge
from support.federations import pico_federation

NOISE = """[noise]
mode = "end-to-end"
epsilon = 8.0
layers = "all"
"""
JOB = """method = { name = "regmean", rows_factor = 0.0 }
compare = ["average"]
examples = 96"""


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
