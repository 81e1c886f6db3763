"""The laws of merge methods: a new method joins by being in METHODS and passing this file.

Bounds. u = 2^-53. A float64 sum of K terms is off by (K - 1) u sum|x| at most (Higham 2002,
section 4.2). Methods that work entry by entry turn that into a few K u max|D|. RegMean solves
A y = J b, x = J y with A = J S J of unit diagonal, J = diag(S)^-1/2, b = M - S D: with
|b error| <= 2 K u width max(diag S) max|D| (S is positive semidefinite, so its diagonal bounds
its entries), the solution is off by at most

    ||A^-1||_1 width |J b error| max J  <=  2 K u width^2 cond(A) max(diag S)/min(diag S) max|D|

and by as much again for the error of A and of the factorisation. Where a progressive method sees
other inputs in the merged model, M also holds (H - G') W_k, so |D| grows by 2 |W_k|.
"""

from dataclasses import replace

import numpy as np
import pytest

from blindmerge.errors import NotFinite, PeerInvalid, SchemaMismatch
from blindmerge.merge import (
    METHODS,
    Average,
    BlockEvidence,
    CrossGramEvidence,
    Evidence,
    Fisher,
    GramEvidence,
    MergeMethod,
    Progressive,
    RegMean,
    RegMeanPlusPlus,
    Solved,
    TaskArithmetic,
    Ties,
)
from blindmerge.statistic import Array, Statistic
from support.evidence import Owner, at_home, make_owners, small_block, summed

U = 2.0**-53
BLOCK = small_block()

VARIANTS: dict[str, MergeMethod] = {
    **METHODS,
    "average, tokens": Average(weighting="tokens"),
    "fisher, tokens": Fisher(weighting="tokens"),
    "regmean, tokens": RegMean(weighting="tokens"),
    "regmean, no ridge": RegMean(ridge=0.0),
    "regmean, off-diagonal": RegMean(off_diagonal=0.5),
    "regmean, all starved": RegMean(rows_factor=1000.0),
    "regmean, two-fold": RegMean(shrinkage="two-fold", rows_factor=0.0),
    "regmean++, two-fold": RegMeanPlusPlus(shrinkage="two-fold", rows_factor=0.0),
    "progressive, two-fold": Progressive(shrinkage="two-fold", rows_factor=0.0, weighting="tokens"),
    "regmean++, tokens": RegMeanPlusPlus(weighting="tokens"),
    "regmean, Fisher's share": RegMean(fisher_share=0.5),
    "regmean++, Fisher's share": RegMeanPlusPlus(fisher_share=0.5, weighting="tokens"),
    "progressive, Fisher's share": Progressive(fisher_share=0.25),
    "progressive, tokens": Progressive(weighting="tokens"),
    "progressive, no ridge": Progressive(ridge=0.0),
    "progressive, all starved": Progressive(rows_factor=1000.0),
    "ties, all": Ties(density=1.0),
}


def keeps_equal_owners(method: MergeMethod, count: int) -> MergeMethod:
    """The method with the options under which K equal owners must give their own weights.

    Task arithmetic multiplies the sum by lambda and TIES drops small entries, by definition:
    they keep the law for lambda = 1/K and for density 1.
    """
    if isinstance(method, TaskArithmetic):
        return TaskArithmetic(scale=1.0 / count)
    return Ties(density=1.0) if isinstance(method, Ties) else method


def bound(owners: tuple[Owner, ...], solved: Solved) -> float:
    """The bound of the module's docstring, for entries of every tensor of the block."""
    moves = [
        np.abs(owner.evidence.own[name] - owner.evidence.base[name]).max()
        + (0 if same_inputs(owner) else 2 * np.abs(owner.evidence.own[name]).max())
        for owner in owners
        for name in BLOCK.shapes
    ]
    largest = max(np.abs(owners[0].evidence.base[name]).max() for name in BLOCK.shapes)
    amplification = 1.0
    for group, report in zip(BLOCK.groups, solved.layers, strict=False):
        if report.condition_number is not None:
            diagonal = sum(np.mean(owner.inputs[group.name] ** 2, axis=0) for owner in owners)
            # LAPACK may report a third of the condition number.
            condition = 3 * report.condition_number
            spread = float(np.max(diagonal) / np.min(diagonal))
            amplification = max(amplification, group.width**2 * condition * spread)
    elementwise = 4 * len(owners) * U * max(moves) * amplification
    return float(elementwise + 2 * U * largest)


def same_inputs(owner: Owner) -> bool:
    return all(np.array_equal(x, owner.merged_inputs[n]) for n, x in owner.inputs.items())


def solve(method: MergeMethod, owners: tuple[Owner, ...]) -> Solved:
    return method.solve(BLOCK, summed(method, BLOCK, owners), owners[0].evidence.base)


def assert_close(actual: Solved, expected: dict[str, Array], atol: float) -> None:
    for name in BLOCK.shapes:
        np.testing.assert_allclose(actual.weights[name], expected[name], rtol=0, atol=atol)


@pytest.fixture
def owners() -> tuple[Owner, ...]:
    return make_owners(BLOCK, np.random.default_rng(7), count=4)


variants = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS.keys())


def test_table_names_every_method_by_its_name() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {n: n for n in METHODS}


@variants
def test_order_of_owners_does_not_matter(method: MergeMethod, owners: tuple[Owner, ...]) -> None:
    forward = solve(method, owners)
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        other = solve(method, tuple(owners[index] for index in order))
        assert_close(other, dict(forward.weights), 2 * bound(owners, forward))
        assert [r.layers for r in other.layers] == [r.layers for r in forward.layers]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@variants
def test_equal_owners_give_the_owners_weights(
    method: MergeMethod, owners: tuple[Owner, ...], count: int
) -> None:
    # What equal owners have merged so far is the owner's model: the law holds step by step.
    owner = at_home(BLOCK, owners[0])
    equal = (owner,) * count
    solved = solve(keeps_equal_owners(method, count), equal)
    assert_close(solved, dict(owner.evidence.own), bound(equal, solved))
    for name in BLOCK.shapes:
        # Own weights are float32 of at least 0.4, so half a step is 2^-26, far above the bound.
        np.testing.assert_array_equal(
            solved.weights[name].astype(np.float32), owner.evidence.own[name].astype(np.float32)
        )


@variants
def test_owners_at_the_base_give_the_base(method: MergeMethod, owners: tuple[Owner, ...]) -> None:
    unmoved = [
        replace(home, evidence=replace(home.evidence, own=home.evidence.base))
        for home in (at_home(BLOCK, owner) for owner in owners)
    ]
    solved = solve(method, tuple(unmoved))
    # Every statistic of a zero delta is exactly zero.
    for name in BLOCK.shapes:
        np.testing.assert_array_equal(solved.weights[name], owners[0].evidence.base[name])


def _grams(value: float, rows: int) -> dict[str, GramEvidence]:
    return {
        group.name: GramEvidence(np.full((group.width, group.width), value), rows)
        for group in BLOCK.groups
    }


def _cross_grams(value: float, rows: int) -> dict[str, CrossGramEvidence]:
    return {
        name: CrossGramEvidence(gram.total, gram.total, rows)
        for name, gram in _grams(value, rows).items()
    }


@variants
def test_schema_depends_on_the_plan_only(method: MergeMethod, owners: tuple[Owner, ...]) -> None:
    ordinary = owners[0].evidence
    empty = BlockEvidence(
        base=ordinary.base,
        own=ordinary.base,
        tokens=0,
        grams=_grams(0.0, rows=0),
        fishers={name: np.zeros(shape) for name, shape in BLOCK.shapes.items()},
        cross_grams=_cross_grams(0.0, rows=0),
        merged_grams=_grams(0.0, rows=0),
    )
    huge = BlockEvidence(
        base=ordinary.base,
        own={name: 1e30 * array for name, array in ordinary.own.items()},
        tokens=10**12,
        grams=_grams(1e60, rows=10**9),
        fishers={name: np.full(shape, 1e60) for name, shape in BLOCK.shapes.items()},
        cross_grams=_cross_grams(1e60, rows=10**9),
        merged_grams=_grams(1e60, rows=10**9),
    )
    schema = method.schema_of(BLOCK)
    for evidence in (ordinary, empty, huge):
        contribution = method.contribution(BLOCK, evidence)
        assert list(contribution.schema.items()) == list(schema.items())
        assert contribution.arrays.keys() == schema.keys()
        for name, shape in schema.items():
            assert contribution[name].shape == shape
            assert contribution[name].dtype == np.float64


@variants
def test_sum_of_contributions_is_a_contribution(
    method: MergeMethod, owners: tuple[Owner, ...]
) -> None:
    total = summed(method, BLOCK, owners)
    assert isinstance(total, Statistic)
    assert dict(total.schema) == dict(method.schema_of(BLOCK))


@variants
def test_solve_returns_every_tensor_of_the_block(
    method: MergeMethod, owners: tuple[Owner, ...]
) -> None:
    solved = solve(method, owners)
    assert {name: array.shape for name, array in solved.weights.items()} == BLOCK.shapes
    for array in solved.weights.values():
        assert array.dtype == np.float64
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()


@variants
def test_solve_leaves_the_sum_as_it_was(method: MergeMethod, owners: tuple[Owner, ...]) -> None:
    total = summed(method, BLOCK, owners)
    copies = {name: array.copy() for name, array in total.arrays.items()}
    first = method.solve(BLOCK, total, owners[0].evidence.base)
    for name, copy in copies.items():
        np.testing.assert_array_equal(total[name], copy)
    again = method.solve(BLOCK, total, owners[0].evidence.base)
    for name in BLOCK.shapes:
        np.testing.assert_array_equal(first.weights[name], again.weights[name])


@variants
def test_evidence_that_a_method_does_not_need_is_not_used(
    method: MergeMethod, owners: tuple[Owner, ...]
) -> None:
    full = owners[0].evidence
    needed = BlockEvidence(
        base=full.base,
        own=full.own,
        tokens=full.tokens,
        grams=full.grams if Evidence.GRAM in method.needs else {},
        fishers=full.fishers if Evidence.FISHER in method.needs else {},
        cross_grams=full.cross_grams if Evidence.CROSS_GRAM in method.needs else {},
        merged_grams=full.merged_grams if Evidence.MERGED_GRAM in method.needs else {},
    )
    from_needed, from_full = (method.contribution(BLOCK, e) for e in (needed, full))
    for name in from_full.schema:
        np.testing.assert_array_equal(from_needed[name], from_full[name])


@variants
def test_not_finite_weights_are_refused(method: MergeMethod, owners: tuple[Owner, ...]) -> None:
    full = owners[0].evidence
    spoilt = full.own["words.weight"].copy()
    spoilt[0, 0] = np.nan
    evidence = replace(full, own={**full.own, "words.weight": spoilt})
    with pytest.raises(NotFinite, match=r"words\.weight"):
        method.contribution(BLOCK, evidence)


@variants
def test_weights_of_another_shape_are_refused(
    method: MergeMethod, owners: tuple[Owner, ...]
) -> None:
    full = owners[0].evidence
    wrong = np.zeros((2, 2))
    evidence = replace(
        full,
        base={**full.base, "words.weight": wrong},
        own={**full.own, "words.weight": wrong},
        fishers={**full.fishers, "words.weight": wrong},
    )
    with pytest.raises(SchemaMismatch, match=r"words\.weight"):
        method.contribution(BLOCK, evidence)


@pytest.mark.parametrize("weight", [0.0, -1.0])
@pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if "weight" in m.schema_of(BLOCK)], ids=lambda m: m.name
)
def test_sum_of_weights_that_is_not_positive_is_refused(
    method: MergeMethod, owners: tuple[Owner, ...], weight: float
) -> None:
    total = summed(method, BLOCK, owners)
    forged = Statistic(total.schema, {**total.arrays, "weight": np.array([weight])})
    with pytest.raises(PeerInvalid, match="add up to"):
        method.solve(BLOCK, forged, owners[0].evidence.base)
