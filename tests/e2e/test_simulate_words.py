"""A federation of taggers, as a person runs it: one tag for every word."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from seqeval.metrics import f1_score
from transformers import AutoModelForTokenClassification

from blindmerge.checkpoint import Checkpoint
from blindmerge.tasks import Task
from blindmerge_client.data import read_examples
from blindmerge_client.predict import predict
from blindmerge_server.report.schema import report_json_schema
from support.command import blindmerge
from support.federations import pico_federation
from support.pico import TAGS

JOB = """method = "regmean"
compare = ["average", "fisher"]"""
TASK: Task = "token-classification"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and terminal output of one simulation."""
    folder = tmp_path_factory.mktemp("simulation")
    pico_federation(folder, job=JOB, task=TASK)
    process = blindmerge(
        "simulate", "federation.toml", "--out", "out", cwd=folder, cache=folder / "cache"
    )
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_the_merged_checkpoint_is_a_tagger(done: tuple[Path, str]) -> None:
    merged = done[0] / "out" / "merged"
    model, report = AutoModelForTokenClassification.from_pretrained(
        merged, output_loading_info=True
    )
    assert not any(report.values()), report
    assert tuple(model.config.id2label.values()) == TAGS


def test_the_report_shows_f1_of_entities(done: tuple[Path, str]) -> None:
    report = json.loads((done[0] / "out" / "report.json").read_text())
    jsonschema.validate(report, report_json_schema())
    assert (report["job"]["task"], report["job"]["metrics"]["f1"]) == (TASK, "entity F1")
    assert "entity F1" in done[1]
    systems = {row["system"]: row for row in report["scores"]}
    assert {"regmean", "average", "fisher", "ensemble", "multi-task"} <= systems.keys()
    # Owners scored the merged model themselves; here it is applied once more.
    merged = done[0] / "out" / "merged"
    for score in systems["regmean"]["scores"]:
        test = read_examples(done[0] / score["data"] / "test.jsonl", TAGS, TASK)
        tags = iter(np.array(TAGS)[predict(merged, test.texts, 16).argmax(axis=1)].tolist())
        found = [[next(tags) for _ in text] for text in test.texts]
        right = [
            np.array(TAGS)[list(tags)].tolist() for tags in test.labels if isinstance(tags, tuple)
        ]
        assert score["metrics"]["f1"] == pytest.approx(
            f1_score(right, found, zero_division=0), rel=1e-15
        )
        assert score["examples"] == len(test)


def test_every_layer_was_regressed(done: tuple[Path, str]) -> None:
    """The head too: its rows are tokens, more than four per input."""
    report = json.loads((done[0] / "out" / "report.json").read_text())
    assert [layer["fallback"] for layer in report["layers"]["regmean"]] == [None] * (4 * 2 + 1)
    shapes = Checkpoint(done[0] / "out" / "merged").shapes
    assert shapes["classifier.weight"] == (3, 16)
