"""RegMean where the Gram matrices are few, singular, ill-conditioned or spoilt."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from blindmerge.manifest import Block, Group, Linear
from blindmerge.merge import LayerReport, RegMean
from blindmerge.statistic import Array
from support.evidence import Owner, make_owners, small_block, stacked, summed, with_inputs

EPS = 2.0**-52
BLOCK = small_block()


def layer_block(inputs: int, *, bias: bool = False) -> Block:
    """One layer with four outputs."""
    layers = (Linear(name="dense", outputs=4, bias=bias),)
    group = Group(name="dense", inputs=inputs, rows="tokens", layers=layers)
    return Block(name="block", module="block", groups=(group,), means=())


def with_rows(block: Block, owners: Sequence[Owner], inputs: Sequence[Array]) -> list[Owner]:
    return [with_inputs(block, o, {"dense": x}) for o, x in zip(owners, inputs, strict=True)]


def merge(block: Block, method: RegMean, owners: Sequence[Owner]) -> tuple[Array, LayerReport]:
    """The stacked weights of the block's only layer, and its report."""
    solved = method.solve(block, summed(method, block, owners), owners[0].evidence.base)
    return stacked(block.groups[0].layers[0], solved.weights), solved.layers[0]


def mean_of(block: Block, owners: Sequence[Owner]) -> Array:
    layer = block.groups[0].layers[0]
    return np.asarray(np.mean([stacked(layer, owner.evidence.own) for owner in owners], axis=0))


def test_starved_group_is_averaged_and_says_so() -> None:
    owners = make_owners(BLOCK, np.random.default_rng(1), count=3, rows=60)
    # Widths 6, 4, 4: the first owner has 60, 60 and 30 rows, and 8 * 4 = 32 are needed.
    method = RegMean(rows_factor=8.0)
    solved = method.solve(BLOCK, summed(method, BLOCK, owners), owners[0].evidence.base)
    starved = {r.layers[-1]: r.fallback for r in solved.layers}
    assert starved["attention.value"] is None
    assert starved["dense"] is None
    assert starved["classifier"] == "1 owner(s) had fewer than 8 x 4 rows"
    report = solved.layers[2]
    assert (report.condition_number, report.ridge) == (None, None)
    expected = np.mean([o.evidence.own["classifier.weight"] for o in owners], axis=0)
    # Three owners, weights of at most 1.1: sums of three, on either side.
    np.testing.assert_allclose(
        solved.weights["classifier.weight"], expected, rtol=0, atol=6 * 1.1 * EPS
    )


def test_starved_owner_sends_no_second_moments() -> None:
    owner = make_owners(BLOCK, np.random.default_rng(1), count=1, rows=30)[0]
    sent = RegMean(rows_factor=100.0).contribution(BLOCK, owner.evidence)
    for name, array in sent.arrays.items():
        if name.endswith((":gram", ":moment")):
            assert not array.any(), name


@pytest.mark.parametrize(("rows", "starved"), [(23, 1.0), (24, 0.0)])
def test_the_limit_itself_is_enough(rows: int, starved: float) -> None:
    owner = make_owners(layer_block(6), np.random.default_rng(1), count=1, rows=rows)[0]
    sent = RegMean(rows_factor=4.0).contribution(layer_block(6), owner.evidence)
    assert sent["dense:starved"][0] == starved


def test_owner_without_rows_starves_the_group_even_without_a_limit() -> None:
    block = layer_block(6)
    owners = list(make_owners(block, np.random.default_rng(1), count=2))
    inputs = [np.zeros((0, 6)), owners[1].inputs["dense"]]
    empty = with_rows(block, owners, inputs)
    merged, report = merge(block, RegMean(rows_factor=0.0), empty)
    assert report.fallback is not None
    np.testing.assert_allclose(merged, mean_of(block, owners), rtol=0, atol=4 * 1.1 * EPS)


def test_gram_of_zeros_is_averaged_and_says_so() -> None:
    block = layer_block(6)
    owners = make_owners(block, np.random.default_rng(2), count=2)
    dead = with_rows(block, owners, [np.zeros((50, 6))] * 2)
    merged, report = merge(block, RegMean(), dead)
    assert report.fallback == "the Gram matrix could not be factorised"
    assert (report.condition_number, report.ridge, report.rows) == (None, None, 100)
    np.testing.assert_allclose(merged, mean_of(block, owners), rtol=0, atol=4 * 1.1 * EPS)


def test_singular_gram_raises_the_ridge_and_says_so() -> None:
    block = layer_block(6)
    rng = np.random.default_rng(3)
    owners = make_owners(block, rng, count=3)
    inputs = [x := rng.standard_normal((40, 6)) for _ in owners]
    for x in inputs:
        x[:, 5] = x[:, 0]
    merged, report = merge(block, RegMean(ridge=0.0), with_rows(block, owners, inputs))
    assert report.fallback is None
    assert report.ridge is not None
    assert 0 < report.ridge <= 1e-8, "no more than it takes"
    # The outputs are what they are without a ridge: lstsq finds the minimum of a singular problem.
    rows = np.vstack([x / np.sqrt(40) for x in inputs])
    weights = [stacked(block.groups[0].layers[0], owner.evidence.own) for owner in owners]
    outputs = np.vstack([x / np.sqrt(40) @ w for x, w in zip(inputs, weights, strict=True)])
    expected = np.linalg.lstsq(rows, outputs, rcond=None)[0]
    # Directions with an eigenvalue e are pulled by rho t / e < 1e-8 * 3 / 0.1, and rounding is
    # amplified by at most the condition number that is accepted, 1e-3 in the null direction,
    # which the rows do not see: 1e-6 for the rest.
    np.testing.assert_allclose(rows @ merged, rows @ expected, rtol=0, atol=1e-6)
    # In the direction that nobody's rows have, (e0 - e5), the average stays.
    free, mean = merged[0] - merged[5], mean_of(block, owners)
    np.testing.assert_allclose(free, mean[0] - mean[5], rtol=0, atol=1e-3 * 0.2)


def test_dead_input_keeps_its_average() -> None:
    block = layer_block(6)
    rng = np.random.default_rng(4)
    owners = make_owners(block, rng, count=3)
    inputs = [rng.standard_normal((40, 6)) * [1, 1, 0, 1, 1, 1] for _ in owners]
    merged, report = merge(block, RegMean(ridge=0.0), with_rows(block, owners, inputs))
    assert report.ridge == 1e-12
    np.testing.assert_allclose(merged[2], mean_of(block, owners)[2], rtol=0, atol=6 * 1.1 * EPS)


def test_units_of_an_input_do_not_matter() -> None:
    """Jacobi scaling: a feature measured in units 2^30 smaller costs no digits."""
    block = layer_block(6)
    rng = np.random.default_rng(5)
    owners = make_owners(block, rng, count=2)
    inputs = [rng.standard_normal((60, 6)) for _ in owners]
    units = np.array([1.0, 2.0**30, 1.0, 2.0**-30, 1.0, 1.0])
    method = RegMean(ridge=0.0)
    plain, plain_report = merge(block, method, with_rows(block, owners, inputs))
    # x' = x u and W' = W / u compute the same; so do the merged weights.
    rescaled = [
        replace(
            owner,
            evidence=replace(
                owner.evidence,
                base={"dense.weight": owner.evidence.base["dense.weight"] / units},
                own={"dense.weight": owner.evidence.own["dense.weight"] / units},
            ),
        )
        for owner in owners
    ]
    other, report = merge(block, method, with_rows(block, rescaled, [x * units for x in inputs]))
    # Powers of two: nothing is rounded differently, up to the order of sums in BLAS.
    atol = 4 * 2 * EPS * 36 * (plain_report.condition_number or np.inf) * 1.1
    np.testing.assert_allclose(other * units[:, None], plain, rtol=0, atol=atol)
    assert report.condition_number == pytest.approx(plain_report.condition_number, rel=1e-9)
