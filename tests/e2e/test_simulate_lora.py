"""A federation whose owners train LoRA factors; the merged model comes as an adapter too."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge_client.adapters import full_weights
from blindmerge_server.report.schema import report_json_schema
from support.command import blindmerge
from support.federations import pico_federation

JOB = """method = { name = "regmean", rows_factor = 0.0 }
adapter_rank = 4"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and terminal output of one simulation."""
    folder = tmp_path_factory.mktemp("lora")
    file = pico_federation(folder, job=JOB)
    training = '[training.lora]\nrank = 2\ntargets = ["query", "value"]\n'
    file.write_text(file.read_text().replace("[[owner]]", f"{training}[[owner]]", 1))
    process = blindmerge(
        "simulate", "federation.toml", "--out", "out", cwd=folder, cache=folder / "cache"
    )
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_only_what_owners_trained_has_moved(done: tuple[Path, str]) -> None:
    merged = Checkpoint(done[0] / "out" / "merged")
    (base,) = (Checkpoint(path) for path in (done[0] / "cache" / "bases").iterdir())
    before, after = base.read(base.shapes), merged.read(merged.shapes)
    head = set(base.manifest.blocks[-1].shapes)
    moved = {n for n in before if np.abs(after[n] - before[n]).max() > 1e-6} - head
    ends = {name.rpartition("attention.self.")[2] for name in moved}
    # The rows of a bias take part in the regression.
    assert (
        {"query.weight", "value.weight"}
        <= ends
        <= {f"{layer}.{part}" for layer in ("query", "value") for part in ("weight", "bias")}
    )


def test_the_adapter_is_the_merged_model_up_to_the_error_of_the_report(
    done: tuple[Path, str],
) -> None:
    out = done[0] / "out"
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, report_json_schema())
    assert report["files"]["the same as an adapter"] == "adapter"
    (base,) = (Checkpoint(path) for path in (done[0] / "cache" / "bases").iterdir())
    found = Checkpoint(full_weights(out / "adapter", base.path, done[0] / "full"))
    merged = Checkpoint(out / "merged").read(base.shapes)
    again, before = found.read(base.shapes), base.read(base.shapes)
    lost = sum(float(np.sum((merged[n] - again[n]) ** 2)) for n in merged)
    total = sum(float(np.sum((merged[n] - before[n]) ** 2)) for n in merged)
    assert report["adapter"]["rank"] == 4
    assert report["adapter"]["relative_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert 0 < report["adapter"]["relative_error"] < 0.5
    assert "adapter, rank 4" in done[1]


def test_the_command_makes_the_same_adapter(done: tuple[Path, str]) -> None:
    (base,) = (done[0] / "cache" / "bases").iterdir()
    process = blindmerge(
        "adapter", base, "out/merged", "again", "--rank", "4", cwd=done[0], cache=None
    )
    assert process.returncode == 0, process.stderr
    assert "rank 4" in process.stdout
    name = "adapter_model.safetensors"
    assert (done[0] / "again" / name).read_bytes() == (done[0] / "out/adapter" / name).read_bytes()
    process = blindmerge("adapter", base, "out/merged", "again", cwd=done[0], cache=None)
    assert (process.returncode, "exists already" in process.stderr) == (2, True)
