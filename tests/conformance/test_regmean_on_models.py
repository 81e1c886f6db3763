"""RegMean from end to end on real models against least squares over everybody's inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from blindmerge.checkpoint import Checkpoint
from blindmerge.manifest import Group
from blindmerge.merge import RegMean
from blindmerge.statistic import Array
from blindmerge.tasks import LANGUAGE, Task
from blindmerge_client.batches import batches
from blindmerge_client.models import auto_class, load_model, load_tokenizer
from support.captured import Captured, captured_rows
from support.evidence import stacked
from support.jobs import Job, make_job
from support.merging import merge
from support.pico import ARCHITECTURES, IN_FORWARD_ORDER, LANGUAGE_MODELS, Architecture

OWNERS = 3
# Texts of every kind have the same layers: one architecture is enough for the other heads.
CASES: list[tuple[Architecture, Task]] = [
    *((each, "single-label") for each in ARCHITECTURES),
    *((each, "token-classification") for each in IN_FORWARD_ORDER),
    ("bert", "multi-label"),
    ("bert", "regression"),
    *LANGUAGE_MODELS,
]
each_model = pytest.mark.parametrize(("architecture", "task"), CASES)


def least_squares(
    group: Group,
    inputs: Sequence[Captured],
    owners: Sequence[Mapping[str, Array]],
    method: RegMean,
) -> dict[str, Array]:
    """argmin of sum_k ||X_k W - X_k W_k||^2 / m_k + rho t ||W - mean W_k||^2, by SVD.

    One tall system: everybody's rows, then the ridge's. No Gram matrix is formed.
    """
    scaled = [x.rows / np.sqrt(x.count) for x in inputs]
    t = np.mean(sum((x**2).sum(axis=0) for x in scaled))
    ridge = np.sqrt(method.ridge * t) * np.eye(group.width)
    solved = {}
    for layer in group.layers:
        own = [stacked(layer, weights_k) for weights_k in owners]
        rows = np.vstack([*scaled, ridge])
        targets = np.vstack(
            [*(x @ w for x, w in zip(scaled, own, strict=True)), ridge @ np.mean(own, axis=0)]
        )
        solved[layer.name] = np.linalg.lstsq(rows, targets, rcond=None)[0]
    return solved


@each_model
def test_merged_layers_are_the_least_squares_solution_over_all_inputs(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    # rows_factor 0: also the head of texts, which has few rows, is solved and not averaged.
    options: dict[str, Any] = {"ridge": 0.01, "rows_factor": 0.0}
    job = make_job(tmp_path, architecture, owners=OWNERS, texts=30, task=task, **options)
    merged = Checkpoint(merge(job))
    method = job.plan.method
    assert isinstance(method, RegMean)
    groups = [group for block in job.plan.blocks for group in block.groups]
    tokenizer = load_tokenizer(job.base)
    rows = [
        captured_rows(load_model(own), groups, batches(tokenizer, texts, 32, 64))
        for own, texts in zip(job.owners, job.texts, strict=True)
    ]
    own = [Checkpoint(path).read(merged.shapes) for path in job.owners]
    found = merged.read(merged.shapes)
    solved = 0
    for group in groups:
        expected = least_squares(group, [x[group.name] for x in rows], own, method)
        for layer in group.layers:
            difference = np.abs(stacked(layer, found) - expected[layer.name])
            # Rounded to float32 once: half a unit, 2^-24 relative. Before that the Cholesky
            # solution is off by about width * 2^-53 * condition (Higham 2002, 10.1); the condition
            # is at most trace / smallest = width t / (0.01 t) = 100 width.
            width = group.width
            bound = 2.0**-24 * np.abs(expected[layer.name]) + 100 * width**2 * 2.0**-53
            assert (difference <= bound).all(), layer.name
            # The solution is not the mean of the owners: the test sees a missing solve.
            mean = np.mean([stacked(layer, weights) for weights in own], axis=0)
            solved += bool((np.abs(mean - expected[layer.name]) > 100 * bound).any())
    assert solved == sum(len(group.layers) for group in groups)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_averaged_is_the_mean(architecture: Architecture, tmp_path: Path) -> None:
    job = make_job(tmp_path, architecture, owners=OWNERS)
    merged = Checkpoint(merge(job))
    own = [Checkpoint(path).read(merged.shapes) for path in job.owners]
    names = {mean.name for block in job.plan.blocks for mean in block.means}
    assert len(names) >= 6
    for name, array in merged.read(names).items():
        # Half a unit of float32, and a few roundings of float64.
        mean = np.mean([weights[name] for weights in own], axis=0)
        assert (np.abs(array - mean) <= 2.0**-24 * np.abs(mean) + 2.0**-50).all(), name


# Not 0.0: inputs that come from a LayerNorm are linearly dependent (they add up to a constant,
# weighted), and the solve of a singular system keeps three digits, not all of them. With a ridge
# the error is far below half a unit of float32, so rounding gives the owner's number back.
@pytest.mark.parametrize(
    ("architecture", "task", "ridge"),
    [
        *((each, "single-label", 0.01) for each in ARCHITECTURES),
        ("bert", "single-label", 0.1),
        *((*each, 0.01) for each in LANGUAGE_MODELS),
    ],
)
def test_equal_owners_give_their_checkpoint_back_bit_for_bit(
    architecture: Architecture, task: Task, ridge: float, tmp_path: Path
) -> None:
    one = make_job(tmp_path, architecture, owners=1, task=task, ridge=ridge, rows_factor=0.0)
    job = Job(one.base, one.owners * OWNERS, one.texts * OWNERS, one.plan, one.folder)
    merged, own = Checkpoint(merge(job)), Checkpoint(one.owners[0])
    found, expected = merged.read(own.shapes), own.read(own.shapes)
    for name in own.shapes:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert merged.sha256 == own.sha256


@each_model
def test_the_merged_model_loads_and_predicts(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    job = make_job(tmp_path, architecture, task=task)
    merged = merge(job)
    kind: Any = auto_class(task)
    model, report = kind.from_pretrained(merged, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer: Any = AutoTokenizer
    inputs = tokenizer.from_pretrained(merged)(["good film"], return_tensors="pt")
    if task == "seq2seq":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        logits = model(**inputs).logits
    outputs = model.config.vocab_size if task in LANGUAGE else len(job.plan.labels)
    if task not in LANGUAGE:
        assert model.config.id2label == dict(enumerate(job.plan.labels))
    # Two words with two special tokens.
    by_token = task in LANGUAGE or task == "token-classification"
    assert logits.shape == ((1, 4, outputs) if by_token else (1, outputs))
    assert torch.isfinite(logits).all()


def test_owners_have_the_servers_checkpoint(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    merged = Checkpoint(merge(job))
    for owner in range(len(job.owners)):
        assert Checkpoint(job.session(owner).finish()).sha256 == merged.sha256
