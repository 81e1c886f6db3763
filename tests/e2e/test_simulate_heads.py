"""A federation whose owners have different labels: each keeps its head."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint
from blindmerge_client.data import read_examples
from blindmerge_client.predict import predict
from blindmerge_server.report.schema import report_json_schema
from support.command import blindmerge
from support.federations import LABELS, pico_federation

OWN = {"gamma": ("sour", "sweet"), "delta": ("minus", "plus", "other")}
OWNERS = ("alpha", "beta", "gamma", "delta")
JOB = """method = { name = "regmean", rows_factor = 1.0 }
compare = ["average"]"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and terminal output of one simulation."""
    folder = tmp_path_factory.mktemp("heads")
    pico_federation(folder, OWNERS, JOB, own_labels=OWN)
    process = blindmerge(
        "simulate", "federation.toml", "--out", "out", cwd=folder, cache=folder / "cache"
    )
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_every_owner_gets_the_merged_body_under_its_own_head(done: tuple[Path, str]) -> None:
    server = Checkpoint(done[0] / "out" / "merged")
    body = server.manifest.with_head_kept
    for owner in OWNERS:
        folder = done[0] / "out" / "owners" / owner
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(report.values()), report
        assert tuple(model.config.id2label.values()) == OWN.get(owner, LABELS)
        found = Checkpoint(folder)
        for name, array in found.read(body.shapes).items():
            np.testing.assert_array_equal(array, server.read([name])[name], err_msg=name)


def test_scores_are_by_owner_with_its_own_labels(done: tuple[Path, str]) -> None:
    report = json.loads((done[0] / "out" / "report.json").read_text())
    jsonschema.validate(report, report_json_schema())
    assert report["job"]["labels"] == []
    assert {each["name"]: tuple(each["labels"]) for each in report["owners"]} == {
        owner: OWN.get(owner, LABELS) for owner in OWNERS
    }
    systems = {row["system"]: row for row in report["scores"]}
    assert list(systems) == ["own", "regmean", "average"]
    assert "RegMean" in done[1]
    for score in systems["regmean"]["scores"]:
        labels = OWN.get(score["data"], LABELS)
        test = read_examples(done[0] / score["data"] / "test.jsonl", labels)
        found = predict(done[0] / "out" / "owners" / score["data"], test.texts, 16)
        right = np.mean(found.argmax(axis=1) == np.array(test.labels))
        assert score["metrics"]["accuracy"] == pytest.approx(right, rel=1e-15)
