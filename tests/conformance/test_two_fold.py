"""The ridge that is chosen from sums is the one that all rows in one place would choose."""

from collections.abc import Sequence

import numpy as np
import pytest

from blindmerge.manifest import Group
from blindmerge.merge import MergeMethod, Progressive, RegMean, RegMeanPlusPlus, Solved
from blindmerge.merge.ridge import RIDGES
from blindmerge.statistic import Array
from support.evidence import Owner, make_owners, small_block, stacked, summed, with_inputs

BLOCK = small_block()
Kind = type[RegMean | RegMeanPlusPlus | Progressive]


def solve(method: MergeMethod, owners: Sequence[Owner]) -> Solved:
    return method.solve(BLOCK, summed(method, BLOCK, owners), owners[0].evidence.base)


def noisy_owners(seed: int, rows: int, spread: float) -> tuple[Owner, ...]:
    """Few rows of a few directions and noise: too small a ridge fits what is in one half alone."""
    rng = np.random.default_rng(seed)
    owners = make_owners(BLOCK, rng, count=3, rows=rows)
    return tuple(
        with_inputs(
            BLOCK,
            owner,
            owner.inputs,
            {n: _blurred(rng, x, spread) for n, x in owner.inputs.items()},
        )
        for owner in owners
    )


def _blurred(rng: np.random.Generator, rows: Array, spread: float) -> Array:
    noise = spread * rng.standard_normal(rows.shape)
    noise[:, (rows == 1.0).all(axis=0)] = 0.0  # of the bias
    return rows + noise


def weights_of(owner: Owner, group: Group) -> Array:
    return np.hstack([stacked(layer, owner.evidence.own) for layer in group.layers])


def losses_centrally(owners: Sequence[Owner], group: Group, kind: Kind) -> Array:
    """By ridge: squared errors on the rows of one half of a regression on those of the other."""
    halves: list[tuple[list[Array], list[Array]]] = [([], []), ([], [])]
    for owner in owners:
        own, merged, weights = (
            owner.inputs[group.name],
            owner.merged_inputs[group.name],
            weights_of(owner, group),
        )
        x = own if kind is RegMean else merged
        y = (merged if kind is RegMeanPlusPlus else own) @ weights
        scale, middle = 1 / np.sqrt(len(x)), len(x) // 2
        for (inputs, outputs), part in zip(
            halves, (slice(None, middle), slice(middle, None)), strict=True
        ):
            inputs.append(scale * x[part])
            outputs.append(scale * y[part])
    stackings = [(np.vstack(inputs), np.vstack(outputs)) for inputs, outputs in halves]
    mean = np.mean([weights_of(owner, group) for owner in owners], axis=0)
    losses = []
    for ridge in RIDGES:
        loss = 0.0
        for seen, unseen in (stackings, stackings[::-1]):
            t = np.mean(np.sum(seen[0] ** 2, axis=0))
            pull = np.sqrt(ridge * t) * np.eye(group.width)
            found = np.linalg.lstsq(
                np.vstack([seen[0], pull]), np.vstack([seen[1], pull @ mean]), rcond=None
            )[0]
            loss += float(np.sum((unseen[0] @ found - unseen[1]) ** 2))
        losses.append(loss)
    return np.array(losses)


@pytest.mark.parametrize("kind", [RegMean, RegMeanPlusPlus, Progressive])
def test_the_ridge_is_that_of_cross_validation_over_rows(kind: Kind) -> None:
    chosen = set()
    for seed, (rows, spread) in enumerate([(8, 3.0), (12, 1.0), (12, 0.1), (60, 0.5), (60, 0.0)]):
        owners = noisy_owners(seed, rows, spread)
        method = kind(shrinkage="two-fold", rows_factor=0.0)
        solved = solve(method, owners)
        for group, report in zip(BLOCK.groups, solved.layers, strict=True):
            losses = losses_centrally(owners, group, kind)
            assert report.ridge in RIDGES
            # Sums and rows round differently: among ridges that are as good either may win.
            assert losses[RIDGES.index(report.ridge)] <= losses.min() * (1 + 1e-9)
            chosen.add(report.ridge)
            # What is merged is the regression over all rows with that ridge.
            fixed = solve(kind(ridge=report.ridge, rows_factor=0.0), owners)
            for layer in group.layers:
                name = f"{layer.name}.weight"
                np.testing.assert_array_equal(solved.weights[name], fixed.weights[name])
    assert len(chosen) > 2, "the data call for different ridges"


def test_a_half_with_too_few_rows_is_averaged() -> None:
    owners = noisy_owners(0, 60, 0.1)
    (group, *_) = BLOCK.groups
    # 60 rows are ten times the width of 6, each half of them five times.
    whole = solve(RegMean(rows_factor=9.0), owners).layers[0]
    halves = solve(RegMean(rows_factor=9.0, shrinkage="two-fold"), owners).layers[0]
    assert group.width == 6
    assert whole.fallback is None
    assert halves.fallback == "3 owner(s) had fewer than 9 x 6 rows"
