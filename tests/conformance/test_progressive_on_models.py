"""Progressive RegMean and RegMean++ on real models against a walk that regresses as it goes.

The walk shares nothing with the product but the manifest: full forward passes of transformers'
own models, rows captured by other hooks, one tall least squares problem per group by SVD.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from transformers import PreTrainedModel

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import PeerInvalid
from blindmerge.manifest import Group
from blindmerge.statistic import Array, Statistic
from blindmerge.tasks import Task
from blindmerge_client.batches import Batch, batches
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_server.rounds import BlockSum, solve_block
from support.captured import Captured, captured_rows
from support.evidence import stacked
from support.jobs import Job, edit_weights, make_job
from support.pico import IN_FORWARD_ORDER, Architecture

OWNERS = 3
RIDGE = 0.01
Rows: TypeAlias = list[Captured]


METHODS = pytest.mark.parametrize("method", ["progressive", "regmean++"])
ROUNDS = pytest.mark.parametrize("rounds", ["group", "layer"])


def job_of(
    folder: Path,
    architecture: Architecture = "bert",
    owners: int = OWNERS,
    method: str = "progressive",
    **options: Any,
) -> Job:
    # rows_factor 0: also the head, which has few sequences, is solved and not averaged.
    fixed: dict[str, Any] = {"ridge": RIDGE, "rows_factor": 0.0}
    return make_job(folder, architecture, owners, texts=30, method=method, **fixed, **options)


def merge(job: Job, before: int | None = None) -> CheckpointWriter:
    """The job without any transport, or what comes before block number `before` of it."""
    base = Checkpoint(job.base)
    writer = CheckpointWriter(job.folder / "merged", base, job.plan.blocks)
    sessions = [job.session(owner) for owner in range(len(job.owners))]
    for number in range(len(job.plan.blocks))[:before]:
        block_sum = BlockSum(job.plan, number)
        for owner, session in enumerate(sessions):
            block_sum.add(f"owner-{owner}", session.contribute(number).arrays)
        solve_block(job.plan, block_sum.total(), base, writer)
        for session in sessions:
            session.receive(writer.read(number))
    if before is None:
        writer.finish()
    return writer


def least_squares(
    group: Group,
    inputs: Sequence[Captured],
    asked: Sequence[Captured],
    owners: Sequence[Mapping[str, Array]],
) -> dict[str, Array]:
    """argmin of sum_k ||X'_k W - Z_k W_k||^2 / m_k + rho t ||W - mean W_k||^2, by SVD.

    inputs, asked: by owner, the rows X'_k and those whose outputs are asked for, Z_k.
    """
    scaled = [x.rows / np.sqrt(x.count) for x in inputs]
    t = np.mean(sum((x**2).sum(axis=0) for x in scaled))
    ridge = np.sqrt(RIDGE * t) * np.eye(group.width)
    solved = {}
    for layer in group.layers:
        weights = [stacked(layer, weights_k) for weights_k in owners]
        outputs = [z.rows / np.sqrt(z.count) @ w for z, w in zip(asked, weights, strict=True)]
        targets = np.vstack([*outputs, ridge @ np.mean(weights, axis=0)])
        solved[layer.name] = np.linalg.lstsq(np.vstack([*scaled, ridge]), targets, rcond=None)[0]
    return solved


def put(folder: Path, tensors: Mapping[str, Array]) -> PreTrainedModel:
    """The model in `folder`, with these tensors in its file from now on."""

    def edit(there: dict[str, Any]) -> None:
        there.update({name: tensor.astype(np.float32) for name, tensor in tensors.items()})

    return load_model(edit_weights(folder, edit))


def walk(job: Job, found: Mapping[str, Array]) -> Iterator[tuple[Group, Rows, Rows]]:
    """Every group, with its rows at each owner: in the model merged so far, and in its own.

    What is not merged before the group's block is the owner's own. The walk goes on from the
    product's numbers `found`, so that roundings do not pile up.
    """
    tokenizer = load_tokenizer(job.base)
    batched: list[list[Batch]] = [batches(tokenizer, texts, 32, 64) for texts in job.texts]
    own = [load_model(path) for path in job.owners]
    folders = [Path(shutil.copytree(path, f"{path}-walks")) for path in job.owners]
    walkers = [load_model(path) for path in folders]
    for block in job.plan.blocks:
        there, here = [], []
        for walker, model, b in zip(walkers, own, batched, strict=True):
            there.append(captured_rows(walker, block.groups, b))
            here.append(captured_rows(model, block.groups, b, like=there[-1]))
        for group in block.groups:
            yield group, [x[group.name] for x in there], [x[group.name] for x in here]
        merged = {name: found[name] for name in block.shapes}
        walkers = [put(folder, merged) for folder in folders]


@METHODS
@ROUNDS
@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        *((each, "single-label") for each in IN_FORWARD_ORDER),
        ("llama", "causal-lm"),
        ("t5", "seq2seq"),
    ],
)
def test_every_group_is_the_regression_in_the_model_merged_so_far(
    architecture: Architecture, task: Task, rounds: str, method: str, tmp_path: Path
) -> None:
    job = job_of(tmp_path, architecture, method=method, rounds=rounds, task=task)
    merged = Checkpoint(merge(job).path)
    found = merged.read(merged.shapes)
    own = [Checkpoint(path).read(merged.shapes) for path in job.owners]
    for group, rows, at_home in walk(job, found):
        asked = at_home if method == "progressive" else rows
        expected = least_squares(group, rows, asked, own)
        regmean = least_squares(group, at_home, at_home, own)
        for layer in group.layers:
            difference = np.abs(stacked(layer, found) - expected[layer.name])
            # Rounded to float32 once, and the error of the solve: see RegMean on models.
            bound = 2.0**-24 * np.abs(expected[layer.name]) + 100 * group.width**2 * 2.0**-53
            assert (difference <= bound).all(), layer.name
            # RegMean gives other weights everywhere: the test sees whose inputs were taken.
            off = np.abs(regmean[layer.name] - expected[layer.name])
            assert (off > 100 * bound).any(), layer.name


def test_a_round_for_each_layer_is_a_block_of_the_manifest(tmp_path: Path) -> None:
    plan = job_of(tmp_path, rounds="layer").plan
    assert plan.blocks == plan.manifest.blocks
    assert plan.phases == tuple((number,) for number in range(len(plan.blocks)))


def test_blocks_are_the_groups_in_forward_order(tmp_path: Path) -> None:
    plan = job_of(tmp_path).plan
    names = [group.name for block in plan.manifest.blocks for group in block.groups]
    assert [block.name for block in plan.blocks] == ["embeddings", *names]
    assert [[g.name for g in block.groups] for block in plan.blocks[1:]] == [[n] for n in names]
    assert plan.phases == tuple((number,) for number in range(len(plan.blocks)))
    shapes = [name for block in plan.blocks for name in block.shapes]
    assert sorted(shapes) == sorted(plan.manifest.shapes)
    # Averages come first: LayerNorms with the first group of their layer.
    assert [bool(block.means) for block in plan.blocks[1:5]] == [True, False, False, False]


@METHODS
@ROUNDS
@pytest.mark.parametrize("architecture", IN_FORWARD_ORDER)
def test_equal_owners_give_their_checkpoint_back_bit_for_bit(
    architecture: Architecture, rounds: str, method: str, tmp_path: Path
) -> None:
    one = job_of(tmp_path, architecture, owners=1, method=method, rounds=rounds)
    job = Job(one.base, one.owners * OWNERS, one.texts * OWNERS, one.plan, one.folder)
    assert Checkpoint(merge(job).path).sha256 == Checkpoint(one.owners[0]).sha256


def same(some: Statistic, other: Statistic) -> bool:
    return all(np.array_equal(some[name], other[name]) for name in some.schema)


@METHODS
@ROUNDS
def test_a_session_that_was_killed_goes_on_with_the_same_statistics(
    rounds: str, method: str, tmp_path: Path
) -> None:
    job = job_of(tmp_path, method=method, rounds=rounds)
    steady = job_of(tmp_path / "steady", method=method, rounds=rounds)
    merge(steady)
    for number in range(len(job.plan.blocks)):
        expected = steady.session(0).contribute(number)
        merge(job, before=number)
        assert same(job.session(0).contribute(number), expected)
        shutil.rmtree(tmp_path / "session-0" / "merged-states", ignore_errors=True)
        assert same(job.session(0).contribute(number), expected), "hidden states are lost"


def test_a_second_run_with_other_merged_tensors_forgets_the_first(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    merge(job)
    pair = Job(job.base, job.owners[:2], job.texts[:2], job.plan, tmp_path)
    expected = tmp_path / "fresh"
    fresh = Job(job.base, job.owners[:2], job.texts[:2], job.plan, expected)
    assert Checkpoint(merge(pair).path).sha256 == Checkpoint(merge(fresh).path).sha256


@pytest.mark.parametrize("number", [1, 5])
def test_a_block_is_not_made_before_those_before_it_are_delivered(
    number: int, tmp_path: Path
) -> None:
    job = job_of(tmp_path)
    merge(job, before=number - 1)
    with pytest.raises(PeerInvalid, match=f"block {number} is asked for before block {number - 1}"):
        job.session(0).contribute(number)
