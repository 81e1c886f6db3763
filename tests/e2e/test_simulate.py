"""The main job, as a person runs it: the command, Flower, Ray, real files."""

import json
import signal
import subprocess
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint
from blindmerge_server.report.schema import report_json_schema
from support.command import COMMAND, blindmerge, environment
from support.federations import LABELS, pico_federation

METHODS = ("regmean", "average", "fisher", "ties", "task-arithmetic")
JOB = """method = { name = "regmean", rows_factor = 1.0 }
compare = ["average", "fisher", "ties", "task-arithmetic"]"""


def simulate(folder: Path, file: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in `folder`, with its cache there."""
    return blindmerge("simulate", file, "--out", "out", cwd=folder, cache=folder / "cache")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and terminal output of one simulation with every method."""
    folder = tmp_path_factory.mktemp("simulation")
    pico_federation(folder, job=JOB)
    process = blindmerge(
        "simulate", "federation.toml", "--out", "out", cwd=folder, cache=folder / "cache"
    )
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_the_merged_checkpoint_loads_and_predicts(done: tuple[Path, str]) -> None:
    merged = done[0] / "out" / "merged"
    model = AutoModelForSequenceClassification.from_pretrained(merged)
    assert tuple(model.config.id2label.values()) == LABELS
    shapes = Checkpoint(merged).shapes
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_report_keeps_its_schema_and_names_every_system(done: tuple[Path, str]) -> None:
    report = json.loads((done[0] / "out" / "report.json").read_text())
    jsonschema.validate(report, report_json_schema())
    systems = [row["system"] for row in report["scores"]]
    own = ["own:alpha", "own:beta", "own:gamma", "own"]
    assert systems == [*own, *METHODS, "ensemble", "multi-task"]
    assert set(report["phases"]) == set(METHODS)
    for phases in report["phases"].values():
        assert [phase["owners"] for phase in phases] == [["alpha", "beta", "gamma"]] * len(phases)
    # One Gram per block of layers with a common input: 4 in each of 2 layers, 2 in the head.
    assert len(report["layers"]["regmean"]) == 4 * 2 + 2
    assert all(owner["bytes_sent"]["regmean"] > 0 for owner in report["owners"])


def test_the_table_fits_a_terminal_of_80_columns(done: tuple[Path, str]) -> None:
    lines = done[1].splitlines()
    # Paths stand alone and unbroken, so that they can be copied.
    assert max(len(line) for line in lines if "/" not in line or " " in line.strip()) <= 80
    for words in ("masks off", "RegMean", "simple average", "Fisher", "ensemble", "multi-task"):
        assert words in done[1]


def test_the_plots_are_pictures(done: tuple[Path, str]) -> None:
    for name in ("scores.png", "matrix.png"):
        assert (done[0] / "out" / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_second_run_trains_nothing_and_gives_the_same(done: tuple[Path, str]) -> None:
    folder, _ = done
    first = json.loads((folder / "out" / "report.json").read_text())
    trained = sorted((folder / "cache" / "models").iterdir())
    stamps = [path.stat().st_mtime_ns for path in trained]
    tensors = _merged(folder / "out")
    process = blindmerge(
        "simulate", "federation.toml", "--out", "out", cwd=folder, cache=folder / "cache"
    )
    assert process.returncode == 0, process.stderr
    assert [path.stat().st_mtime_ns for path in trained] == stamps
    second = json.loads((folder / "out" / "report.json").read_text())
    assert first["scores"] == second["scores"]
    # Owners are added as they answer: float64 sums of three terms may differ in the last bits,
    # which float32 weights do not show but by one unit in the last place.
    for name, array in _merged(folder / "out").items():
        np.testing.assert_allclose(array, tensors[name], rtol=2**-22, atol=1e-12)


def _merged(out: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    checkpoint = Checkpoint(out / "merged")
    return checkpoint.read(checkpoint.shapes)


def test_nothing_of_a_run_stays_but_its_results(done: tuple[Path, str]) -> None:
    folder, _ = done
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "matrix.png",
        "merged",
        "report.json",
        "scores.png",
    ]
    assert sorted(path.name for path in (folder / "cache").iterdir()) == [
        "bases",
        "models",
        "predictions",
    ]


def test_ctrl_c_stops_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    file = pico_federation(tmp_path)
    process = subprocess.Popen(
        [COMMAND, "simulate", file, "--out", "out"],
        cwd=tmp_path,
        env=environment(tmp_path / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "fine-tune" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "blindmerge: error: stopped" in errors
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "cache").glob(".run-*")] == []


@pytest.mark.parametrize(
    ("breakage", "code", "words"),
    [
        ("label", 3, ["alpha/train.jsonl", "label"]),
        ("empty", 3, ["beta/test.jsonl"]),
        ("missing", 2, ["owner.gamma.train"]),
        ("unknown-key", 2, ["federation.toml", "ridgee"]),
        ("no-base", 2, ["job.base"]),
    ],
)
def test_bad_input_is_named_before_any_work(
    tmp_path: Path, breakage: str, code: int, words: list[str]
) -> None:
    file = pico_federation(tmp_path)
    if breakage == "label":
        (tmp_path / "alpha/train.jsonl").write_text('{"text": "good", "label": "neutral"}\n')
    elif breakage == "empty":
        (tmp_path / "beta/test.jsonl").write_text("")
    elif breakage == "missing":
        (tmp_path / "gamma/train.jsonl").unlink()
    elif breakage == "unknown-key":
        file.write_text(file.read_text().replace("rows_factor", "ridgee"))
    else:
        file.write_text(file.read_text().replace('"encoder"', '"nowhere"'))
    process = simulate(tmp_path, file)
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    for word in words:
        assert word in process.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache" / "models").exists()
