"""RegMean++ equals one regression over the rows of the merged model, by one party."""

from collections.abc import Sequence

import numpy as np
import pytest

from blindmerge.manifest import Group
from blindmerge.merge import MergeMethod, RegMean, RegMeanPlusPlus, Solved
from blindmerge.statistic import Array
from support.evidence import Owner, at_home, make_owners, small_block, stacked, summed

U = 2.0**-53
BLOCK = small_block()


@pytest.fixture
def owners() -> tuple[Owner, ...]:
    return make_owners(BLOCK, np.random.default_rng(13), count=5)


def solve(method: MergeMethod, owners: Sequence[Owner]) -> Solved:
    return method.solve(BLOCK, summed(method, BLOCK, owners), owners[0].evidence.base)


def own(owner: Owner, group: Group) -> Array:
    return np.hstack([stacked(layer, owner.evidence.own) for layer in group.layers])


def centrally(owners: Sequence[Owner], group: Group, ridge: float) -> tuple[Array, float]:
    """minimise sum_k |X'_k (W - W_k)|^2 / m_k + rho t |W - mean W_k|^2, by SVD.

    Also the condition number of its normal equations.
    """
    weights = [own(owner, group) for owner in owners]
    rows = [owner.merged_inputs[group.name] for owner in owners]
    rows = [x / np.sqrt(len(x)) for x in rows]
    t = np.mean(np.sum(np.vstack(rows) ** 2, axis=0))
    prior = np.sqrt(ridge * t) * np.eye(group.width)
    targets = [*(x @ w for x, w in zip(rows, weights, strict=True)), prior @ np.mean(weights, 0)]
    tall = np.vstack([*rows, prior])
    solution = np.linalg.lstsq(tall, np.vstack(targets), rcond=None)[0]
    return np.asarray(solution), float(np.linalg.cond(tall.T @ tall, 1))


@pytest.mark.parametrize("ridge", [0.01, 0.1, 3.0])
def test_it_keeps_what_owners_do_to_the_inputs_in_the_merged_model(
    owners: tuple[Owner, ...], ridge: float
) -> None:
    solved = solve(RegMeanPlusPlus(rows_factor=0.0, ridge=ridge), owners)
    regmean = solve(RegMean(rows_factor=0.0, ridge=ridge), owners)
    for group in BLOCK.groups:
        expected, condition = centrally(owners, group, ridge)
        # As for progressive RegMean: normal equations and their solve are each off by a few
        # width u times the condition number, relative to the largest of weights and right side.
        atol = 8 * len(owners) * U * group.width**2 * condition * float(np.abs(expected).max() + 1)
        assert atol < 1e-8, "the bound says something"
        found, other = (
            np.hstack([stacked(layer, each.weights) for layer in group.layers])
            for each in (solved, regmean)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
        assert np.abs(other - expected).max() > 1e-4, "RegMean is another model"


def test_it_is_regmean_where_both_models_get_the_same(owners: tuple[Owner, ...]) -> None:
    home = [at_home(BLOCK, owner) for owner in owners]
    plus, regmean = solve(RegMeanPlusPlus(), home), solve(RegMean(), home)
    assert plus.layers == regmean.layers
    for name in BLOCK.shapes:
        np.testing.assert_array_equal(plus.weights[name], regmean.weights[name])
