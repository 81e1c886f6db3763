"""Progressive RegMean equals one regression from merged inputs to own outputs, by one party."""

from collections.abc import Sequence

import numpy as np
import pytest

from blindmerge.manifest import Group
from blindmerge.merge import MergeMethod, Progressive, RegMean, Solved
from blindmerge.statistic import Array
from support.evidence import Owner, at_home, make_owners, small_block, stacked, summed

U = 2.0**-53
BLOCK = small_block()


@pytest.fixture
def owners() -> tuple[Owner, ...]:
    return make_owners(BLOCK, np.random.default_rng(11), count=5)


def solve(method: MergeMethod, owners: Sequence[Owner]) -> Solved:
    return method.solve(BLOCK, summed(method, BLOCK, owners), owners[0].evidence.base)


def merged(solved: Solved, group: Group) -> Array:
    return np.hstack([stacked(layer, solved.weights) for layer in group.layers])


PROGRESSIVES = (
    Progressive(rows_factor=0.0, ridge=0.01),
    Progressive(rows_factor=0.0),
    Progressive(rows_factor=0.0, ridge=3.0),
    Progressive(rows_factor=0.0, ridge=0.1, weighting="tokens"),
)


def distilled_centrally(owners: Sequence[Owner], group: Group, method: Progressive) -> Array:
    """One least squares problem: from the merged model's rows to the owners' outputs.

    minimise  sum_k s_k |X'_k W - X_k W_k|^2 + rho t |W - mean W_k|^2,  t = mean diag sum s_k G'_k
    """
    rows, targets = [], []
    equal = method.weighting == "equal"
    weights = [
        np.hstack([stacked(layer, owner.evidence.own) for layer in group.layers])
        for owner in owners
    ]
    for owner, weight in zip(owners, weights, strict=True):
        x = owner.inputs[group.name]
        scale = 1 / np.sqrt(len(x)) if equal else 1.0
        rows.append(scale * owner.merged_inputs[group.name])
        targets.append(scale * (x @ weight))
    t = np.mean(np.sum(np.vstack(rows) ** 2, axis=0))
    tokens = None if equal else [owner.evidence.tokens for owner in owners]
    mean = np.average(weights, axis=0, weights=tokens)
    rows.append(np.sqrt(method.ridge * t) * np.eye(group.width))
    targets.append(rows[-1] @ mean)
    return np.asarray(np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0])


@pytest.mark.parametrize("method", PROGRESSIVES, ids=repr)
def test_progressive_equals_least_squares_from_merged_inputs_to_own_outputs(
    owners: tuple[Owner, ...], method: Progressive
) -> None:
    solved = solve(method, owners)
    for group in BLOCK.groups:
        scale = [
            1 / len(o.inputs[group.name]) if method.weighting == "equal" else 1 for o in owners
        ]
        system = sum(
            s * x.T @ x
            for s, x in zip(scale, (o.merged_inputs[group.name] for o in owners), strict=True)
        )
        system = system + method.ridge * np.mean(np.diagonal(system)) * np.eye(group.width)
        # Normal equations and their solve: each is off by a few width u times the condition
        # number, relative to the largest of weights and right side, X'^T X W <= width max S.
        condition = float(np.linalg.cond(system, 1))
        expected = distilled_centrally(owners, group, method)
        atol = 8 * len(owners) * U * group.width**2 * condition * float(np.abs(expected).max() + 1)
        assert atol < 1e-8, "the bound says something"
        np.testing.assert_allclose(merged(solved, group), expected, rtol=0, atol=atol)
        # Drift matters: RegMean is another model.
        regmean = solve(RegMean(rows_factor=0.0, ridge=method.ridge), owners)
        assert np.abs(merged(regmean, group) - expected).max() > 1e-3


@pytest.mark.parametrize("weighting", ["equal", "tokens"])
def test_progressive_is_regmean_where_both_models_get_the_same(
    owners: tuple[Owner, ...], weighting: str
) -> None:
    home = [at_home(BLOCK, owner) for owner in owners]
    options = {"weighting": weighting, "ridge": 0.1, "rows_factor": 0.0}
    progressive = solve(Progressive.model_validate(options), home)
    regmean = solve(RegMean.model_validate(options), home)
    assert progressive.layers == regmean.layers
    for name in BLOCK.shapes:
        np.testing.assert_array_equal(progressive.weights[name], regmean.weights[name])
