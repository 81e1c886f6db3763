"""The main job, as a person runs it: the command, Flower, Ray, real files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint
from blindmerge_server.report.schema import MASKS_OFF, MASKS_ON, report_json_schema
from support.command import COMMAND, blindmerge, environment
from support.federations import LABELS, pico_federation

OWNERS = ("alpha", "beta", "gamma")
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
    assert set(report["sums"]) == set(METHODS)
    # One Gram per block of layers with a common input: 4 in each of 2 layers, 2 in the head.
    assert len(report["layers"]["regmean"]) == 4 * 2 + 2
    assert all(owner["bytes_sent"]["regmean"] > 0 for owner in report["owners"])


def test_the_table_fits_a_terminal_of_80_columns(done: tuple[Path, str]) -> None:
    lines = done[1].splitlines()
    # Paths stand alone and unbroken, so that they can be copied.
    assert max(len(line) for line in lines if "/" not in line or " " in line.strip()) <= 80
    assert lines[0].strip() == MASKS_ON.format(least=3)
    for words in ("RegMean", "simple average", "Fisher", "ensemble", "multi-task"):
        assert words in done[1]


def test_the_sums_say_who_is_in_them_and_who_signed(done: tuple[Path, str]) -> None:
    folder, _ = done
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["masks"] is True
    assert report["protection"] == MASKS_ON.format(least=3)
    masks = report["job"]["masks"]
    assert (masks["owners"], masks["least_owners"], masks["bits"]) == (3, 3, 64)
    for method, sums in report["sums"].items():
        # All of these methods take one sum over everything.
        (only,) = sums
        assert len(only["blocks"]) == 4
        assert only["owners"] == only["signed"] == only["opened"] == list(OWNERS)
        chosen = method == METHODS[0]
        assert only["transcript"] == ("transcripts/sum-001.cbor" if chosen else None)
    process = blindmerge(
        "verify-transcript",
        "out/transcripts/sum-001.cbor",
        "--roster",
        masks["roster_sha256"],
        cwd=folder,
        cache=None,
    )
    assert process.returncode == 0, process.stderr
    assert "sum of 3 of 3 owners, signed by 3 of them" in process.stdout
    assert "and the roster is the pinned one" in process.stdout
    plan = report["job"]["methods"][0]["plan_sha256"]
    assert f"plan        {plan}" in process.stdout
    other = blindmerge(
        "verify-transcript",
        "out/transcripts/sum-001.cbor",
        "--roster",
        "0" * 64,
        cwd=folder,
        cache=None,
    )
    assert other.returncode == 5


def test_without_masks_the_first_line_says_so(done: tuple[Path, str]) -> None:
    """The owners' models are in the cache, so that nothing is trained."""
    folder, _ = done
    text = (folder / "federation.toml").read_text().replace(JOB, 'method = "average"')
    text = text.replace("[job]", '[job]\nmasks = "off"')
    text = text.replace("[[owner]]", "[[owner]]\nallow_masks_off = true")
    (folder / "open.toml").write_text(text)
    process = blindmerge(
        "simulate", "open.toml", "--out", "open", cwd=folder, cache=folder / "cache"
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[0].strip() == MASKS_OFF
    report = json.loads((folder / "open" / "report.json").read_text())
    assert list(report)[:2] == ["masks", "protection"]
    assert (report["masks"], report["protection"]) == (False, MASKS_OFF)
    assert report["job"]["masks"] is None
    assert [each["owners"] for each in report["sums"]["average"]] == [list(OWNERS)] * 4
    assert {each["signed"] for each in report["sums"]["average"]} == {None}
    assert not (folder / "open" / "transcripts").exists()
    assert "signatures under the sums" not in report["files"]


KILLED = """
import os, signal, sys
from flwr.clientapp import ClientApp
from blindmerge import cli
from blindmerge_server.simulate import apps

honest = apps.client_app

def with_a_victim(pupils):
    inner, app = honest(pupils), ClientApp()

    def answer(message, context):
        name = pupils[int(context.node_config["partition-id"])].name
        request = message.content.config_records.get("request", {})
        if name == "delta" and request.get("block") == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(message, context)

    app.train()(answer)
    app.evaluate()(answer)
    app.query("fine_tune")(answer)
    return app

apps.client_app = with_a_victim
cli.main()
"""


def test_an_owner_whose_process_is_killed_drops_out(tmp_path: Path) -> None:
    """In the middle of masked input, of 48 bits; of four owners, three are enough."""
    four = (*OWNERS, "delta")
    pico_federation(tmp_path, owners=four, job='method = "average"\nbits = 48')
    # Ray's workers get functions of the main module by value, hence no patch of the product.
    process = subprocess.run(
        [sys.executable, "-c", KILLED, "simulate", "federation.toml", "--out", "out"],
        cwd=tmp_path,
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (only,) = report["sums"]["average"]
    assert only["owners"] == only["signed"] == only["opened"] == list(OWNERS)
    assert report["job"]["masks"]["bits"] == 48
    missing = {owner["name"]: owner["missing"] for owner in report["owners"]}
    assert missing.keys() == set(four)
    assert [name for name, why in missing.items() if why] == ["delta"]
    assert missing["delta"]["method"] == "average"
    assert missing["delta"]["step"] == "R2 masked input: bert.encoder.layer.1"
    assert missing["delta"]["reason"].startswith("the node failed")
    assert "delta is missing since R2 masked input" in process.stdout
    process = blindmerge(
        "verify-transcript",
        "out/transcripts/sum-001.cbor",
        "--roster",
        report["job"]["masks"]["roster_sha256"],
        cwd=tmp_path,
        cache=None,
    )
    assert process.returncode == 0, process.stderr
    assert "sum of 3 of 4 owners, signed by 3 of them" in process.stdout


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
        "transcripts",
    ]
    assert sorted(path.name for path in (folder / "cache").iterdir()) == [
        "bases",
        "layouts",
        "models",
        "predictions",
    ]


SMALL_DISK = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MOUNTED = 'mount -t tmpfs -o size=16k tmpfs tiny && "$0" "$@"; code=$?; ls -A tiny; exit $code'


def _has_namespaces() -> bool:
    try:
        command = [*SMALL_DISK, "mount -t tmpfs tmpfs /mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _has_namespaces(), reason="needs unshare and user namespaces")
def test_a_full_disk_is_named_and_holds_nothing(done: tuple[Path, str]) -> None:
    """The folder for the results is on a disk that is smaller than the merged model."""
    folder, _ = done
    text = (folder / "federation.toml").read_text().replace(JOB, 'method = "average"')
    (folder / "small.toml").write_text(text)
    (folder / "tiny").mkdir()
    process = subprocess.run(
        [*SMALL_DISK, MOUNTED, COMMAND, "simulate", "small.toml", "--out", "tiny/out"],
        cwd=folder,
        env=environment(folder / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    (folder / "tiny").rmdir()
    (folder / "small.toml").unlink()
    assert process.returncode == 7, process.stderr
    assert "blindmerge: error: cannot write 'tiny/out': the disk is full" in process.stderr
    assert "run the same command again" in process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""  # of `ls`: not even an empty folder


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
