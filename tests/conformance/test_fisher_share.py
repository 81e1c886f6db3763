"""A share of Fisher merging: a mean of two merged models, of which later layers see one."""

import numpy as np
import pytest

from blindmerge.merge import MergeMethod, Progressive, RegMean, RegMeanPlusPlus, Solved
from support.evidence import Owner, make_owners, small_block, summed

U = 2.0**-53
BLOCK = small_block()
AVERAGED = {mean.name for mean in BLOCK.means}
FLOOR = 1e-6  # of Fisher merging by default


@pytest.fixture
def owners() -> tuple[Owner, ...]:
    return make_owners(BLOCK, np.random.default_rng(11), count=5)


def solve(method: MergeMethod, owners: tuple[Owner, ...]) -> Solved:
    return method.solve(BLOCK, summed(method, BLOCK, owners), owners[0].evidence.base)


@pytest.mark.parametrize("share", [0.25, 0.9])
@pytest.mark.parametrize("weighting", ["equal", "tokens"])
@pytest.mark.parametrize("kind", [RegMean, RegMeanPlusPlus, Progressive])
def test_the_merged_layers_are_the_mean_of_both(
    owners: tuple[Owner, ...],
    kind: type[RegMean | RegMeanPlusPlus | Progressive],
    weighting: str,
    share: float,
) -> None:
    options = {"rows_factor": 0.0, "weighting": weighting}
    alone = solve(kind.model_validate(options), owners)
    mixed = solve(kind.model_validate({**options, "fisher_share": share}), owners)
    lambdas = np.array([1.0 if weighting == "equal" else o.evidence.tokens for o in owners])
    linear = [name for name in BLOCK.shapes if name not in AVERAGED]
    # The floor is relative to the largest mean among the tensors that have Fisher information here.
    least = FLOOR * max(
        np.average([o.evidence.fishers[name].mean() for o in owners], weights=lambdas)
        for name in linear
    )
    for name in linear:
        own = np.stack([o.evidence.own[name] for o in owners])
        weights = np.stack(
            [w * (o.evidence.fishers[name] + least) for w, o in zip(lambdas, owners, strict=True)]
        )
        fisher = np.sum(weights * own, axis=0) / np.sum(weights, axis=0)
        expected = (1 - share) * alone.weights[name] + share * fisher
        # Sums of five terms of weights below 1.1, twice, in the mean; then two products.
        atol = 2 * 2 * 5 * 1.1 * 5 * U + 4 * U * float(np.abs(alone.weights[name]).max())
        np.testing.assert_allclose(mixed.weights[name], expected, rtol=0, atol=atol)
    for name in AVERAGED:
        np.testing.assert_array_equal(mixed.weights[name], alone.weights[name])
    assert mixed.layers == alone.layers


@pytest.mark.parametrize("kind", [RegMeanPlusPlus, Progressive])
def test_later_layers_are_measured_in_the_regression_alone(
    owners: tuple[Owner, ...], kind: type[RegMeanPlusPlus | Progressive]
) -> None:
    alone = solve(kind(rows_factor=0.0), owners)
    mixed = solve(kind(rows_factor=0.0, fisher_share=0.5), owners)
    assert alone.interim is None
    assert mixed.interim is not None
    for name in BLOCK.shapes:
        np.testing.assert_array_equal(mixed.interim[name], alone.weights[name])


def test_nothing_is_revised_where_nothing_depends_on_it(owners: tuple[Owner, ...]) -> None:
    method = RegMean(fisher_share=0.5)
    assert not method.revises
    assert solve(method, owners).interim is None


def test_averaged_tensors_have_no_fisher_information_in_the_sum() -> None:
    schema = Progressive(fisher_share=0.25).schema_of(BLOCK)
    informed = {name.removesuffix(":fisher") for name in schema if name.endswith(":fisher")}
    assert informed == BLOCK.shapes.keys() - AVERAGED
