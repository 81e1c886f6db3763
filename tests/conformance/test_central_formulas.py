"""Every method equals its paper's formula, computed by one party that sees everything.

The formulas are written from the papers over the owners' weights and rows; they share no
code with `blindmerge.merge`. Bounds: see `test_merge_method.py`, whose K u width^2 cond(A)
max(diag S)/min(diag S) max|D| is called `regmean_bound` here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from blindmerge.manifest import Group
from blindmerge.merge import (
    Average,
    BlockEvidence,
    Fisher,
    MergeMethod,
    Progressive,
    RegMean,
    Solved,
    TaskArithmetic,
    Ties,
    Weights,
)
from blindmerge.statistic import Array
from support.evidence import Owner, make_owners, small_block, stacked, summed

U = 2.0**-53
BLOCK = small_block()
AVERAGED = [mean.name for mean in BLOCK.means]


@pytest.fixture
def owners() -> tuple[Owner, ...]:
    return make_owners(BLOCK, np.random.default_rng(11), count=5)


def base_of(owners: Sequence[Owner]) -> Weights:
    return owners[0].evidence.base


def own(owners: Sequence[Owner], name: str) -> Array:
    """[owners, ...]: the owners' own weights."""
    return np.stack([owner.evidence.own[name] for owner in owners])


def token_weights(owners: Sequence[Owner]) -> Array:
    return np.array([float(owner.evidence.tokens) for owner in owners])


def solve(method: MergeMethod, owners: Sequence[Owner]) -> Solved:
    return method.solve(BLOCK, summed(method, BLOCK, owners), base_of(owners))


# Weights are at most 1.1 and five owners: sums of K terms below 1.1, twice (ours and numpy's).
ELEMENTWISE = 2 * 5 * 1.1 * 5 * U


def test_average_is_the_mean_of_the_weights(owners: tuple[Owner, ...]) -> None:
    solved = solve(Average(), owners)
    for name in BLOCK.shapes:
        expected = np.mean(own(owners, name), axis=0)
        np.testing.assert_allclose(solved.weights[name], expected, rtol=0, atol=ELEMENTWISE)


def test_average_by_tokens_is_the_weighted_mean(owners: tuple[Owner, ...]) -> None:
    solved = solve(Average(weighting="tokens"), owners)
    for name in BLOCK.shapes:
        expected = np.average(own(owners, name), axis=0, weights=token_weights(owners))
        np.testing.assert_allclose(solved.weights[name], expected, rtol=0, atol=ELEMENTWISE)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_task_arithmetic_adds_scaled_task_vectors(owners: tuple[Owner, ...], scale: float) -> None:
    solved = solve(TaskArithmetic(scale=scale), owners)
    for name in BLOCK.shapes:
        base = base_of(owners)[name]
        expected = base + scale * (own(owners, name) - base).sum(axis=0)
        np.testing.assert_allclose(solved.weights[name], expected, rtol=0, atol=ELEMENTWISE)


def fisher_mean(owners: Sequence[Owner], name: str, lambdas: Array, floor: float) -> Array:
    """Matena and Raffel, eq. 4, after `floor` of the largest mean is added to every Fisher."""
    means = [
        np.average([owner.evidence.fishers[each].mean() for owner in owners], weights=lambdas)
        for each in BLOCK.shapes
    ]
    fishers = np.stack([owner.evidence.fishers[name] for owner in owners]) + floor * max(means)
    shaped = lambdas.reshape(-1, *[1] * (fishers.ndim - 1))
    numerator = np.sum(shaped * fishers * own(owners, name), axis=0)
    return np.asarray(numerator / np.sum(shaped * fishers, axis=0))


@pytest.mark.parametrize("floor", [1e-6, 0.1, 10.0])
@pytest.mark.parametrize("weighting", ["equal", "tokens"])
def test_fisher_is_the_weighted_mean_of_the_paper(
    owners: tuple[Owner, ...], weighting: str, floor: float
) -> None:
    method = Fisher.model_validate({"weighting": weighting, "floor": floor})
    solved = solve(method, owners)
    lambdas = np.ones(5) if weighting == "equal" else token_weights(owners)
    for name in BLOCK.shapes:
        expected = fisher_mean(owners, name, lambdas, floor)
        # Numerator and denominator: K terms each, on either side.
        np.testing.assert_allclose(solved.weights[name], expected, rtol=0, atol=2 * ELEMENTWISE)


def information(owners: Sequence[Owner], name: str) -> Array:
    """The sum of the owners' Fishers of a tensor."""
    return np.asarray(sum(owner.evidence.fishers[name] for owner in owners))


def test_fisher_without_floor_is_the_limit(owners: tuple[Owner, ...]) -> None:
    floor = 1e-13
    solved = solve(Fisher(floor=floor), owners)
    largest = max(information(owners, name).mean() for name in BLOCK.shapes)
    for name in BLOCK.shapes:
        expected = fisher_mean(owners, name, np.ones(5), 0.0)
        total = information(owners, name)
        # d/de (FD + e mean D)/(F + e) <= 2 max|D| / F, and e = floor * the largest mean F.
        atol = 2 * 0.11 * floor * float(largest / np.min(total)) + 2 * ELEMENTWISE
        np.testing.assert_allclose(solved.weights[name], expected, rtol=0, atol=atol)


def _with_fishers(owner: Owner, fishers: Mapping[str, Array]) -> Owner:
    evidence = replace(owner.evidence, fishers={**owner.evidence.fishers, **fishers})
    return replace(owner, evidence=evidence)


def test_fisher_averages_what_nobody_knows(owners: tuple[Owner, ...]) -> None:
    known = owners[0].evidence.fishers["words.weight"].copy()
    known[3] = 0.0
    blind = [
        _with_fishers(owner, {"words.weight": known, "LayerNorm.bias": np.zeros(5)})
        for owner in owners
    ]
    solved = solve(Fisher(), blind)
    words, norm = (np.mean(own(owners, n), axis=0) for n in ("words.weight", "LayerNorm.bias"))
    np.testing.assert_allclose(
        solved.weights["words.weight"][3], words[3], rtol=0, atol=2 * ELEMENTWISE
    )
    np.testing.assert_allclose(solved.weights["LayerNorm.bias"], norm, rtol=0, atol=ELEMENTWISE)


def test_fisher_averages_a_block_of_which_nobody_knows_anything(
    owners: tuple[Owner, ...],
) -> None:
    nothing = {name: np.zeros(shape) for name, shape in BLOCK.shapes.items()}
    solved = solve(Fisher(), [_with_fishers(owner, nothing) for owner in owners])
    for name in BLOCK.shapes:
        mean = np.mean(own(owners, name), axis=0)
        np.testing.assert_allclose(solved.weights[name], mean, rtol=0, atol=ELEMENTWISE)


def test_fisher_averages_tensors_whose_information_is_rounding_noise(
    owners: tuple[Owner, ...],
) -> None:
    # Gradients of float32 that should vanish are 2^-24 of others: their squares, 2^-48.
    rng = np.random.default_rng(2)
    noise = 2.0**-48
    noisy = [
        _with_fishers(owner, {"LayerNorm.bias": noise * rng.standard_exponential(5)})
        for owner in owners
    ]
    method = Fisher()
    solved = solve(method, noisy)
    largest = max(information(noisy, name).mean() for name in BLOCK.shapes)
    found = information(noisy, "LayerNorm.bias").max()
    # (FD + e mean D) / (F + e) is off mean D by F / (F + e) times 2 max|D| at most.
    atol = 2 * 0.11 * found / (method.floor * largest) + ELEMENTWISE
    assert atol < 1e-6, "the bound says something"
    mean = np.mean(own(owners, "LayerNorm.bias"), axis=0)
    np.testing.assert_allclose(solved.weights["LayerNorm.bias"], mean, rtol=0, atol=atol)


def ties_centrally(taus: Array, density: float, scale: float) -> Array:
    """Yadav et al., algorithm 1, over stacked task vectors [owners, ...] of one tensor."""
    trimmed = np.zeros_like(taus)
    for owner, tau in enumerate(taus):
        keep = max(1, round(density * tau.size))
        for index in np.argsort(-np.abs(tau), axis=None)[:keep]:
            trimmed[owner].flat[index] = tau.flat[index]
    merged = np.zeros(taus.shape[1:])
    for index in np.ndindex(merged.shape):
        votes = trimmed[(slice(None), *index)]
        elected = np.sign(votes.sum())
        agreeing = [vote for vote in votes if vote != 0 and np.sign(vote) == elected]
        merged[index] = scale * np.mean(agreeing) if agreeing else 0.0
    return merged


@pytest.mark.parametrize(("density", "scale"), [(0.2, 1.0), (0.5, 0.7), (1.0, 1.0), (0.001, 1.0)])
def test_ties_equals_the_algorithm_of_the_paper(
    owners: tuple[Owner, ...], density: float, scale: float
) -> None:
    solved = solve(Ties(density=density, scale=scale), owners)
    for name in BLOCK.shapes:
        base = base_of(owners)[name]
        expected = base + ties_centrally(own(owners, name) - base, density, scale)
        np.testing.assert_allclose(solved.weights[name], expected, rtol=0, atol=ELEMENTWISE)


def regmean_centrally(owners: Sequence[Owner], group: Group, method: RegMean) -> Array:
    """Jin et al., eq. 1, as one least squares problem with rows instead of Gram matrices.

    minimise  sum_k alpha |sqrt(s_k) X_k (W - W_k)|^2 + (1 - alpha) |sqrt(s_k diag) (W - W_k)|^2
              + rho t |W - mean W_k|^2

    The second term is what is left of a Gram matrix whose off-diagonal is multiplied by alpha.
    """
    rows, targets, diagonal = [], [], np.zeros(group.width)
    equal = method.weighting == "equal"
    weights = [
        np.hstack([stacked(layer, owner.evidence.own) for layer in group.layers])
        for owner in owners
    ]
    for owner, weight in zip(owners, weights, strict=True):
        x = owner.inputs[group.name] / (np.sqrt(len(owner.inputs[group.name])) if equal else 1.0)
        features = np.diag(np.sqrt(np.sum(x**2, axis=0)))
        for part, matrix in ((method.off_diagonal, x), (1 - method.off_diagonal, features)):
            rows.append(np.sqrt(part) * matrix)
            targets.append(rows[-1] @ weight)
        diagonal += np.sum(x**2, axis=0)
    mean = np.average(weights, axis=0, weights=None if equal else token_weights(owners))
    rows.append(np.sqrt(method.ridge * diagonal.mean()) * np.eye(group.width))
    targets.append(rows[-1] @ mean)
    return np.asarray(np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0])


def scaled_matrix(owners: Sequence[Owner], group: Group, method: RegMean) -> Array:
    """The ridged sum of Gram matrices, scaled to a unit diagonal."""
    total = np.zeros((group.width, group.width))
    for owner in owners:
        gram = owner.inputs[group.name].T @ owner.inputs[group.name]
        if method.weighting == "equal":
            gram /= len(owner.inputs[group.name])
        off = ~np.eye(group.width, dtype=bool)
        gram[off] *= method.off_diagonal
        total += gram
    total += method.ridge * np.mean(np.diagonal(total)) * np.eye(group.width)
    jacobi = 1 / np.sqrt(np.diagonal(total))
    return np.asarray(total * np.outer(jacobi, jacobi))


def regmean_bound(owners: Sequence[Owner], group: Group, method: RegMean) -> float:
    condition = float(np.linalg.cond(scaled_matrix(owners, group, method), 1))
    diagonal = sum(np.mean(owner.inputs[group.name] ** 2, axis=0) for owner in owners)
    spread = float(np.max(diagonal) / np.min(diagonal))
    # Weights instead of deltas, which the reference works on: at most 1.1.
    return 4 * len(owners) * U * group.width**2 * condition * spread * 1.1


def merged(solved: Solved, group: Group) -> Array:
    return np.hstack([stacked(layer, solved.weights) for layer in group.layers])


REGMEANS = (
    RegMean(rows_factor=0.0, ridge=0.0),
    RegMean(rows_factor=0.0),
    RegMean(rows_factor=0.0, ridge=3.0),
    RegMean(rows_factor=0.0, ridge=0.0, off_diagonal=0.9),
    RegMean(rows_factor=0.0, ridge=0.01, off_diagonal=0.5),
    RegMean(rows_factor=0.0, ridge=0.0, weighting="tokens"),
    RegMean(rows_factor=0.0, ridge=0.1, weighting="tokens", off_diagonal=0.7),
)


@pytest.mark.parametrize("method", REGMEANS, ids=repr)
def test_regmean_equals_least_squares_over_all_rows(
    owners: tuple[Owner, ...], method: RegMean
) -> None:
    solved = solve(method, owners)
    for group in BLOCK.groups:
        expected = regmean_centrally(owners, group, method)
        atol = regmean_bound(owners, group, method)
        assert atol < 1e-8, "the bound says something"
        np.testing.assert_allclose(merged(solved, group), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("method", REGMEANS, ids=repr)
def test_regmean_averages_embeddings_and_norms(owners: tuple[Owner, ...], method: RegMean) -> None:
    solved = solve(method, owners)
    weights = None if method.weighting == "equal" else token_weights(owners)
    for name in AVERAGED:
        expected = np.average(own(owners, name), axis=0, weights=weights)
        np.testing.assert_allclose(solved.weights[name], expected, rtol=0, atol=ELEMENTWISE)


@pytest.mark.parametrize("method", REGMEANS, ids=repr)
def test_regmean_reports_condition_number_ridge_and_rows(
    owners: tuple[Owner, ...], method: RegMean
) -> None:
    solved = solve(method, owners)
    for group, report in zip(BLOCK.groups, solved.layers, strict=True):
        condition = float(np.linalg.cond(scaled_matrix(owners, group, method), 1))
        assert report.condition_number is not None
        # LAPACK's estimate is a lower bound and, on ordinary matrices, within a factor of 3.
        assert condition / 3 <= report.condition_number <= condition * (1 + 1e-9)
        assert report.ridge == method.ridge
        assert report.rows == sum(len(owner.inputs[group.name]) for owner in owners)
        assert report.layers == tuple(layer.name for layer in group.layers)
        assert report.block == BLOCK.name
        assert report.fallback is None


def test_regmean_with_a_huge_ridge_is_the_average(owners: tuple[Owner, ...]) -> None:
    method, ridge = RegMean(rows_factor=0.0, ridge=1e12), 1e12
    solved = solve(method, owners)
    for group in BLOCK.groups:
        mean = np.mean(
            [
                np.hstack([stacked(layer, owner.evidence.own) for layer in group.layers])
                for owner in owners
            ],
            axis=0,
        )
        # |(S + rho t I)^-1 (M - S D)| <= |sum G_k (D_k - D)| / (rho t) <= K width t 0.2 / (rho t)
        atol = 5 * group.width**2 * 0.2 / ridge + ELEMENTWISE
        np.testing.assert_allclose(merged(solved, group), mean, rtol=0, atol=atol)
    assert [report.ridge for report in solved.layers] == [ridge] * 3
    assert [report.fallback for report in solved.layers] == [None] * 3


def test_regmean_with_a_tiny_ridge_is_exact_regmean(owners: tuple[Owner, ...]) -> None:
    ridge = 1e-12
    solved = solve(RegMean(rows_factor=0.0, ridge=ridge), owners)
    exact = RegMean(rows_factor=0.0, ridge=0.0)
    for group in BLOCK.groups:
        condition = float(np.linalg.cond(scaled_matrix(owners, group, exact), 1))
        diagonal = sum(np.mean(owner.inputs[group.name] ** 2, axis=0) for owner in owners)
        spread = float(np.max(diagonal) / np.min(diagonal))
        # |x(rho) - x(0)| <= rho t |S^-1| |x|; x is a difference of deltas, at most cond * 0.2.
        moved = ridge * group.width * condition * spread * condition * 0.2
        atol = moved + regmean_bound(owners, group, exact)
        expected = regmean_centrally(owners, group, exact)
        np.testing.assert_allclose(merged(solved, group), expected, rtol=0, atol=atol)


def test_regmean_without_off_diagonal_weighs_every_feature_alone(
    owners: tuple[Owner, ...],
) -> None:
    solved = solve(RegMean(rows_factor=0.0, ridge=0.0, off_diagonal=0.0), owners)
    for group in BLOCK.groups:
        squares = np.array([np.mean(o.inputs[group.name] ** 2, axis=0) for o in owners])
        for layer in group.layers:
            weights = np.array([stacked(layer, owner.evidence.own) for owner in owners])
            expected = np.einsum("kw,kwo->wo", squares, weights) / squares.sum(axis=0)[:, None]
            actual = stacked(layer, solved.weights)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * ELEMENTWISE)


def test_regmean_by_tokens_is_one_regression_over_all_rows(owners: tuple[Owner, ...]) -> None:
    method = RegMean(rows_factor=0.0, ridge=0.0, weighting="tokens")
    solved = solve(method, owners)
    for group in BLOCK.groups:
        inputs = np.vstack([owner.inputs[group.name] for owner in owners])
        for layer in group.layers:
            outputs = np.vstack(
                [o.inputs[group.name] @ stacked(layer, o.evidence.own) for o in owners]
            )
            expected = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
            atol = regmean_bound(owners, group, method)
            np.testing.assert_allclose(stacked(layer, solved.weights), expected, rtol=0, atol=atol)


def test_weighting_by_tokens_differs_from_equal(owners: tuple[Owner, ...]) -> None:
    few = replace(owners[0], evidence=replace(owners[0].evidence, tokens=1))
    for kind in (Average, Fisher, RegMean, Progressive):
        equal, tokens = (
            solve(kind.model_validate({"weighting": weighting}), [few, *owners[1:]])
            for weighting in ("equal", "tokens")
        )
        for name in AVERAGED:
            assert np.abs(equal.weights[name] - tokens.weights[name]).max() > 1e-3


def test_ties_by_hand() -> None:
    block = BLOCK.model_copy(update={"groups": (), "means": BLOCK.means[1:]})
    base = {"LayerNorm.bias": np.zeros(5)}
    taus = (
        [5.0, 4.0, 3.0, -0.1, 0.2],
        [3.0, -9.0, -3.0, 0.3, 0.1],
        [1.0, 4.0, 0.5, 0.4, -2.0],
    )
    owners = [
        BlockEvidence(base=base, own={"LayerNorm.bias": np.array(tau)}, tokens=1) for tau in taus
    ]
    method = Ties(density=0.6)  # three of five
    total = method.contribution(block, owners[0])
    for owner in owners[1:]:
        total = total + method.contribution(block, owner)
    merged_bias = method.solve(block, total, base).weights["LayerNorm.bias"]
    # Kept: 5 4 3 . . | 3 -9 -3 . . | 1 4 . . -2. Votes 9, -1, 0, 0, -2; a tie elects nobody.
    np.testing.assert_array_equal(merged_bias, [3.0, -9.0, 0.0, 0.0, -2.0])
