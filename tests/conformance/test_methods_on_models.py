"""Every method on every kind of model: it merges as its formula says, or is refused by the plan."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import ConfigInvalid
from blindmerge.merge import METHODS
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from support.jobs import Job, make_job
from support.merging import merge
from support.pico import ARCHITECTURES, LANGUAGE_MODELS, Architecture

REFUSED: dict[tuple[str, str], str] = {
    ("albert", "progressive"): "runs several times in one pass",
    ("albert", "regmean++"): "runs several times in one pass",
}


each_model = pytest.mark.parametrize(
    ("architecture", "task"),
    [*((each, "single-label") for each in ARCHITECTURES), *LANGUAGE_MODELS],
)


def weights_of(job: Job, merged: Path) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The merged tensors, the base's, and each owner's."""
    found = Checkpoint(merged)
    own = [Checkpoint(path).read(found.shapes) for path in job.owners]
    return found.read(found.shapes), Checkpoint(job.base).read(found.shapes), own


@each_model
def test_the_average_is_the_mean_and_ties_the_elected_side(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    job = make_job(tmp_path, architecture, owners=3, method="average", task=task)
    found, base, own = weights_of(job, merge(job))
    for name, array in found.items():
        mean = np.mean([each[name] for each in own], axis=0)
        # Half a unit of float32, and a few roundings of float64.
        assert (np.abs(array - mean) <= 2.0**-24 * np.abs(mean) + 2.0**-50).all(), name
    all_kept = make_job(
        tmp_path / "ties", architecture, owners=3, method="ties", task=task, density=1.0
    )
    found, base, own = weights_of(all_kept, merge(all_kept))
    for name, array in found.items():
        deltas = np.array([each[name] - base[name] for each in own])
        agree = np.sign(deltas) == np.sign(deltas.sum(axis=0))
        moved = np.where(agree, deltas, 0.0).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
        expected = base[name] + moved
        assert (np.abs(array - expected) <= 2.0**-24 * np.abs(expected) + 2.0**-50).all(), name


def by_information(job: Job, names: Iterable[str]) -> dict[str, Array]:
    """(sum F_k W_k + e mean W_k) / (sum F_k + e) of the named tensors, block by block."""
    sessions = [job.session(owner) for owner in range(len(job.owners))]
    merged = {}
    for number, block in enumerate(job.plan.blocks):
        evidences = [session.evidence(number) for session in sessions]
        some = sorted(block.shapes.keys() & set(names))
        fishers = {n: np.array([e.fishers[n] for e in evidences]) for n in some}
        least = 1e-6 * max((f.sum(axis=0).mean() for f in fishers.values()), default=0.0)
        for name, fisher in fishers.items():
            own = np.array([evidence.own[name] for evidence in evidences])
            numerator = (fisher * own).sum(axis=0) + least * own.mean(axis=0)
            merged[name] = numerator / (fisher.sum(axis=0) + least)
    return merged


@each_model
def test_fisher_merging_weighs_every_number_by_its_information(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    job = make_job(tmp_path, architecture, owners=2, texts=6, method="fisher", task=task)
    found, _, own = weights_of(job, merge(job))
    for name, expected in by_information(job, found).items():
        # A ratio of sums of deltas: half a unit of float32, and roundings of the largest of them.
        spread = max(float(np.abs(each[name]).max()) for each in own)
        bound = 2.0**-24 * np.abs(expected) + 2.0**-46 * spread
        assert (np.abs(found[name] - expected) <= bound).all(), name


@each_model
def test_a_share_of_fisher_merging_can_be_had_of_every_model(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"texts": 6, "task": task, "rows_factor": 0.0}
    plain = make_job(tmp_path / "plain", architecture, owners=2, **options)
    mixed = make_job(tmp_path / "mixed", architecture, owners=2, **options, fisher_share=0.25)
    alone, _, _ = weights_of(plain, merge(plain))
    found, _, own = weights_of(mixed, merge(mixed))
    linear = {name for block in mixed.plan.blocks for name in mixed.plan.method.informed(block)}
    assert linear
    informed = by_information(mixed, linear)
    for name, array in found.items():
        expected = 0.75 * alone[name] + 0.25 * informed[name] if name in linear else alone[name]
        # Two roundings to float32, of what is in the file and of the regression alone.
        spread = max(float(np.abs(each[name]).max()) for each in (*own, alone))
        assert (np.abs(array - expected) <= 2.0**-23 * spread).all(), name


@pytest.mark.parametrize("method", METHODS)
@each_model
def test_a_plan_says_before_any_work_what_cannot_be_merged(
    architecture: Architecture, task: Task, method: str, tmp_path: Path
) -> None:
    reason = REFUSED.get((architecture, method))
    if reason is None:
        make_job(tmp_path, architecture, owners=0, method=method, task=task)
        return
    with pytest.raises(ValidationError, match=reason):
        make_job(tmp_path, architecture, owners=0, method=method, task=task)
    manifest = Checkpoint(tmp_path / "base").manifest
    with pytest.raises(ConfigInvalid, match=reason) as refused:
        METHODS[method].check(manifest)
    assert "regmean" in refused.value.hint
