"""Every method on every kind of model: it merges as its formula says, or is refused by the plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import ConfigInvalid
from blindmerge.merge import METHODS
from blindmerge.tasks import LANGUAGE, Task
from support.jobs import Job, make_job
from support.merging import merge
from support.pico import ARCHITECTURES, LANGUAGE_MODELS, Architecture

REFUSED: dict[tuple[str, str], str] = {
    ("albert", "progressive"): "runs several times in one pass",
    ("albert", "regmean++"): "runs several times in one pass",
    ("albert", "fisher"): "used several times in one pass",
    ("deberta", "fisher"): "used several times in one pass",
    ("mpnet", "fisher"): "used several times in one pass",
    ("mixtral", "fisher"): "experts are computed together",
    ("qwen2-moe", "fisher"): "experts are computed together",
    ("qwen3-moe", "fisher"): "experts are computed together",
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


@pytest.mark.parametrize("method", METHODS)
@each_model
def test_a_plan_says_before_any_work_what_cannot_be_merged(
    architecture: Architecture, task: Task, method: str, tmp_path: Path
) -> None:
    reason = REFUSED.get((architecture, method))
    if task in LANGUAGE and method == "fisher":
        reason = "no Fisher information of a language model"
    if reason is None:
        make_job(tmp_path, architecture, owners=0, method=method, task=task)
        return
    with pytest.raises(ValidationError, match=reason):
        make_job(tmp_path, architecture, owners=0, method=method, task=task)
    manifest = Checkpoint(tmp_path / "base").manifest
    with pytest.raises(ConfigInvalid, match=reason) as refused:
        METHODS[method].check(manifest)
    assert "regmean" in refused.value.hint
