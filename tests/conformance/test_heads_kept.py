"""Owners with different labels: the body is merged, heads stay with their owners."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, PeerInvalid
from blindmerge.plan import Plan
from blindmerge.tasks import Task
from blindmerge_client.session import Session
from support.jobs import LABELS, Job, make_plan_for, noisy, weights_of, with_plan
from support.merging import merge
from support.pico import TAGS, Architecture, examples_for, pico_encoder

OWN_LABELS = (LABELS, ("cold", "warm"), ("a", "b", "c", "d"))
OWN_TAGS = (TAGS, ("B-X", "O"), ("B-Y", "I-Y", "B-Z", "O"))


def kept(
    folder: Path,
    architecture: Architecture = "bert",
    task: Task = "single-label",
    method: str = "regmean",
) -> Job:
    """Three owners whose heads have three, two and four outputs."""
    labels = OWN_TAGS if task == "token-classification" else OWN_LABELS
    # One seed: the same body under different heads.
    starts = [
        pico_encoder(folder / f"start-{k}", architecture, labels=names, task=task)
        for k, names in enumerate(labels)
    ]
    options = {} if method == "average" else {"rows_factor": 0.0}
    return Job(
        base=starts[0],
        owners=tuple(noisy(start, folder / f"own-{k}", k) for k, start in enumerate(starts)),
        texts=tuple(examples_for(task, 12, k).texts for k in range(3)),
        plan=make_plan_for(starts[0], method, "kept", **options),
        folder=folder,
    )


@pytest.mark.parametrize(
    ("architecture", "task", "method"),
    [
        ("bert", "single-label", "regmean"),
        ("roberta", "token-classification", "regmean"),
        ("bert", "single-label", "progressive"),
        ("distilbert", "single-label", "fisher"),
    ],
)
def test_an_owners_result_is_the_merged_body_under_its_own_head(
    architecture: Architecture, task: Task, method: str, tmp_path: Path
) -> None:
    if method == "fisher":
        job = with_plan(
            kept(tmp_path, architecture, task, "average"),
            method=make_plan_for(tmp_path / "start-0", method).method,
        )
    else:
        job = kept(tmp_path, architecture, task, method)
    server = Checkpoint(merge(job))
    body, heads = server.read(job.plan.manifest.shapes), job.plan.manifest.kept
    assert heads
    assert {*body, *heads} == set(server.shapes)
    for owner, folder in enumerate(job.owners):
        own, found = Checkpoint(folder), Checkpoint(job.session(owner).finish())
        assert found.labels == own.labels
        assert found.shapes == own.shapes
        for name, array in found.read(found.shapes).items():
            expected = own.read([name])[name] if name in heads else body[name]
            np.testing.assert_array_equal(array, expected, err_msg=name)
    before = weights_of(job.owners[0])
    assert any((body[name] != before[name]).any() for name in body)


def test_the_body_is_that_of_a_job_with_shared_heads(tmp_path: Path) -> None:
    job = kept(tmp_path)
    same = Job(
        base=job.base,
        owners=tuple(noisy(job.base, tmp_path / f"same-{k}", k) for k in range(3)),
        texts=job.texts,
        plan=job.plan,
        folder=tmp_path / "apart",
    )
    shared = Job(
        same.base,
        same.owners,
        same.texts,
        make_plan_for(job.base, "regmean", rows_factor=0.0),
        tmp_path / "shared",
    )
    apart, whole = weights_of(merge(same)), weights_of(merge(shared))
    base = weights_of(job.base)
    for name, array in apart.items():
        expected = base[name] if name in job.plan.manifest.kept else whole[name]
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_the_owners_model_loads_and_predicts_its_own_labels(tmp_path: Path) -> None:
    job = kept(tmp_path)
    merge(job)
    for owner, labels in enumerate(OWN_LABELS):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            job.session(owner).finish(), output_loading_info=True
        )
        assert not any(report.values()), report
        assert tuple(model.config.id2label.values()) == labels
        with torch.no_grad():
            assert model(torch.full((1, 4), 7)).logits.shape == (1, len(labels))


def test_a_plan_with_kept_heads_has_no_labels_and_no_head(tmp_path: Path) -> None:
    plan = kept(tmp_path).plan
    assert Plan.decode(plan.encode()) == plan
    assert plan.labels == ()
    assert not set(plan.manifest.kept) & set(plan.manifest.shapes)
    dumped = {name: getattr(plan, name) for name in Plan.model_fields}
    with pytest.raises(ValidationError, match="labels of their own"):
        Plan.model_validate(dumped | {"labels": LABELS})


def test_a_plan_that_keeps_something_else_is_refused(tmp_path: Path) -> None:
    job = kept(tmp_path)
    *rest, last = job.plan.manifest.kept
    other = job.plan.manifest.model_copy(update={"kept": tuple(rest)})
    assert last
    plan = job.plan.model_copy(update={"manifest": other})
    with pytest.raises(PeerInvalid, match="not those of its base"):
        Session(plan, job.base, job.owners[0], job.texts[0], tmp_path / "session")


def test_another_body_is_still_refused(tmp_path: Path) -> None:
    job = kept(tmp_path)
    foreign = pico_encoder(tmp_path / "foreign", seed=5, labels=("x", "y"))
    with pytest.raises(CheckpointInvalid, match="not fine-tuned from the base"):
        Session(job.plan, job.base, foreign, job.texts[0], tmp_path / "session")
