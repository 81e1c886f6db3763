"""Federations whose texts have several labels, a number, or none, as a person runs them."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from blindmerge.tasks import LANGUAGE, METRICS, Task
from blindmerge_client.data import read_examples
from blindmerge_client.predict import predict
from blindmerge_server.report.schema import report_json_schema
from support.command import blindmerge
from support.federations import pico_federation
from support.pico import labels_for

JOB = """method = { name = "regmean", rows_factor = 1.0 }
compare = ["%s"]"""


@pytest.mark.parametrize("task", ["multi-label", "regression", "causal-lm", "seq2seq"])
def test_a_federation_is_merged_and_scored_by_the_metrics_of_its_task(
    task: Task, tmp_path: Path
) -> None:
    other = "average" if task in LANGUAGE else "fisher"  # which is not for language models
    pico_federation(tmp_path, job=JOB % other, task=task)
    process = blindmerge(
        "simulate", "federation.toml", "--out", "out", cwd=tmp_path, cache=tmp_path / "cache"
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    jsonschema.validate(report, report_json_schema())
    assert report["job"]["metrics"] == {each.id: each.name for each in METRICS[task]}
    first, second, *_ = METRICS[task]
    for word in (first.name, second.name):
        assert word in " ".join(process.stdout.split())
    systems = {row["system"]: row for row in report["scores"]}
    assert {"own", "regmean", other, "ensemble", "multi-task"} <= systems.keys()
    # Owners scored the merged model themselves; here it is applied once more.
    for row in systems["regmean"]["scores"]:
        file = tmp_path / row["data"] / "test.jsonl"
        test = read_examples(file, labels_for(task), task)
        found = predict(tmp_path / "out" / "merged", test.texts, 16)
        gold = np.array(test.labels)
        if task in LANGUAGE:
            cross_entropy = -float(found[:, 0].mean())
            assert row["metrics"]["perplexity"] == pytest.approx(np.exp(cross_entropy))
            assert row["metrics"]["accuracy"] == pytest.approx(found[:, 1].mean())
        elif task == "multi-label":
            expected = f1_score(gold, found > 0.5, average="micro", zero_division=0)
            assert row["metrics"]["micro_f1"] == pytest.approx(expected, rel=1e-12)
        else:
            assert row["metrics"]["mse"] == pytest.approx(np.mean((found[:, 0] - gold) ** 2))
            rho = stats.spearmanr(found[:, 0], gold)[0]
            assert row["metrics"]["spearman"] == pytest.approx(rho, abs=1e-12)
