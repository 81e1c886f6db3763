"""A block at the server without masks: who may be in the sum, and what becomes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import NotFinite, PeerInvalid, SchemaMismatch, TooFewOwners
from blindmerge.statistic import Array
from blindmerge_server.rounds import BlockSum, solve_block
from support.jobs import Job, make_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, owners=3, method="average")


def arrays_of(job: Job, owner: int, block: int = 1) -> dict[str, Array]:
    return dict(job.session(owner).contribute(block).arrays)


def test_the_sum_is_the_sum(job: Job) -> None:
    block_sum = BlockSum(job.plan, 1)
    arrays = [arrays_of(job, owner) for owner in range(3)]
    for name, owner in (("c", 2), ("a", 0), ("b", 1)):
        block_sum.add(name, arrays[owner])
    total = block_sum.total()
    assert (total.block, total.owners) == (1, ("a", "b", "c"))
    for name, array in total.statistic.arrays.items():
        # In the order of arrival, which decides the last bit.
        np.testing.assert_array_equal(array, arrays[2][name] + arrays[0][name] + arrays[1][name])


@pytest.mark.parametrize("owners", [0, 1])
def test_a_sum_of_one_owner_is_never_shown(job: Job, owners: int) -> None:
    block_sum = BlockSum(job.plan, 1)
    for owner in range(owners):
        block_sum.add(f"owner-{owner}", arrays_of(job, owner))
    with pytest.raises(TooFewOwners, match=rf"{owners} owner\(s\).*layer\.0.*needs 2"):
        block_sum.total()


def nan(arrays: dict[str, Any]) -> None:
    name = sorted(arrays)[0]
    arrays[name] = np.full_like(arrays[name], np.nan)


def wrong_shape(arrays: dict[str, Any]) -> None:
    name = sorted(arrays)[0]
    arrays[name] = np.zeros((*arrays[name].shape, 1))


def wrong_dtype(arrays: dict[str, Any]) -> None:
    arrays["weight"] = arrays["weight"].astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (nan, NotFinite),
        (wrong_shape, SchemaMismatch),
        (wrong_dtype, SchemaMismatch),
        (lambda arrays: arrays.pop("weight"), SchemaMismatch),
        (lambda arrays: arrays.update(more=np.ones(1)), SchemaMismatch),
        (lambda arrays: arrays.update(weight=np.array([1.7e308])), NotFinite),
    ],
)
def test_a_bad_contribution_leaves_the_sum_as_it_was(job: Job, spoil: Any, error: Any) -> None:
    block_sum = BlockSum(job.plan, 1)
    first = arrays_of(job, 0)
    # Together with the last case's number the sum overflows.
    first["weight"] = np.array([1.7e308])
    block_sum.add("a", first)
    bad = arrays_of(job, 1)
    spoil(bad)
    with pytest.raises(error):
        block_sum.add("b", bad)
    block_sum.add("b", arrays_of(job, 1))
    total = block_sum.total()
    assert total.owners == ("a", "b")
    assert total.statistic["weight"] == 1.7e308 + 1.0


def test_nobody_counts_twice(job: Job) -> None:
    block_sum = BlockSum(job.plan, 1)
    block_sum.add("a", arrays_of(job, 0))
    with pytest.raises(PeerInvalid, match="'a' has contributed"):
        block_sum.add("a", arrays_of(job, 1))
    with pytest.raises(TooFewOwners):
        block_sum.total()


def test_a_solved_block_is_written(job: Job, tmp_path: Path) -> None:
    base = Checkpoint(job.base)
    writer = CheckpointWriter(tmp_path / "out", base)
    block_sum = BlockSum(job.plan, 1)
    for owner in range(3):
        block_sum.add(f"owner-{owner}", arrays_of(job, owner))
    assert solve_block(job.plan, block_sum.total(), base, writer) == ()
    assert [number for number in range(4) if writer.has(number)] == [1]
    merged = writer.read(1)
    assert merged.keys() == job.plan.blocks[1].shapes.keys()
    own = [Checkpoint(path).read(merged) for path in job.owners]
    for name, array in merged.items():
        assert array.dtype == np.float32
        mean = np.mean([weights[name] for weights in own], axis=0)
        # Half a unit of float32, and a few roundings of float64.
        assert (np.abs(array - mean) <= 2.0**-24 * np.abs(mean) + 2.0**-50).all()
