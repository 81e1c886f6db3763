"""Properties of merging over many owners, seeds and orders."""

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.merge import (
    METHODS,
    Average,
    Fisher,
    MergeMethod,
    Progressive,
    RegMean,
    RegMeanPlusPlus,
    Solved,
    TaskArithmetic,
    Ties,
)
from blindmerge.statistic import Statistic
from support.evidence import Owner, at_home, make_owners, small_block, summed

BLOCK = small_block()

_WEIGHTINGS = st.sampled_from(["equal", "tokens"])
_SCALES = st.floats(0.01, 2.0)
METHOD_OPTIONS: dict[str, st.SearchStrategy[MergeMethod]] = {
    "average": st.builds(Average, weighting=_WEIGHTINGS),
    "task-arithmetic": st.builds(TaskArithmetic, scale=_SCALES),
    "fisher": st.builds(Fisher, weighting=_WEIGHTINGS, floor=st.floats(1e-9, 10.0)),
    "regmean": st.builds(
        RegMean,
        weighting=_WEIGHTINGS,
        ridge=st.floats(0.01, 100.0),
        off_diagonal=st.floats(0.0, 1.0),
        rows_factor=st.sampled_from([0.0, 4.0, 10.0]),
    ),
    **{
        method.name: st.builds(
            type(method),
            weighting=_WEIGHTINGS,
            ridge=st.floats(0.01, 100.0),
            rows_factor=st.sampled_from([0.0, 4.0, 10.0]),
        )
        for method in (Progressive(), RegMeanPlusPlus())
    },
    "ties": st.builds(Ties, density=st.floats(0.01, 1.0), scale=_SCALES),
}
METHODS_ANY = st.one_of(*METHOD_OPTIONS.values())


@st.composite
def _owners(draw: st.DrawFn, most: int = 5) -> tuple[Owner, ...]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return make_owners(BLOCK, rng, draw(st.integers(1, most)), rows=draw(st.integers(20, 80)))


def _on_a_grid(statistic: Statistic) -> Statistic:
    """Multiples of 2^-24 below 2^28, as sums of a ring are: adding them rounds nothing."""
    arrays = {name: np.rint(array * 2**24) / 2**24 for name, array in statistic.arrays.items()}
    assert all(np.abs(array).max() < 2**20 for array in arrays.values())
    return Statistic(statistic.schema, arrays)


def _solve(method: MergeMethod, owners: tuple[Owner, ...], order: list[int]) -> Solved:
    sent = [_on_a_grid(method.contribution(BLOCK, owner.evidence)) for owner in owners]
    total = reduce(add, (sent[index] for index in order))
    return method.solve(BLOCK, total, owners[0].evidence.base)


def test_every_method_is_drawn() -> None:
    assert METHOD_OPTIONS.keys() == METHODS.keys()


@settings(max_examples=60, deadline=None)
@given(METHODS_ANY, _owners(), st.data())
def test_order_of_exact_sums_does_not_change_a_bit(
    method: MergeMethod, owners: tuple[Owner, ...], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(owners))))
    first = _solve(method, owners, list(range(len(owners))))
    second = _solve(method, owners, list(order))
    assert first.layers == second.layers
    for name in BLOCK.shapes:
        np.testing.assert_array_equal(first.weights[name], second.weights[name])


@settings(max_examples=60, deadline=None)
@given(METHODS_ANY, _owners(most=1), st.integers(1, 6))
def test_equal_owners_give_the_owners_weights_in_float32(
    method: MergeMethod, owners: tuple[Owner, ...], count: int
) -> None:
    if isinstance(method, TaskArithmetic):
        method = TaskArithmetic(scale=1.0 / count)
    if isinstance(method, Ties):
        method = Ties(density=1.0)
    base, own = owners[0].evidence.base, owners[0].evidence.own
    # Then the model merged so far is theirs as well.
    equal = (at_home(BLOCK, owners[0]),) * count
    solved = method.solve(BLOCK, summed(method, BLOCK, equal), base)
    for name in BLOCK.shapes:
        # With a ridge of 0.01 condition numbers stay below width^2 / 0.01, so the error stays
        # below 1e-9, and half a step of a float32 above 0.25 is 1.5e-8.
        merged = solved.weights[name].astype(np.float32)
        np.testing.assert_array_equal(merged, own[name].astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(METHODS_ANY, _owners(), st.integers(-20, 20))
def test_merging_commutes_with_powers_of_two(
    method: MergeMethod, owners: tuple[Owner, ...], exponent: int
) -> None:
    """All weights times 2^e: so is the merged model, bit for bit; no hidden absolute constant."""
    factor = 2.0**exponent
    first = method.solve(BLOCK, summed(method, BLOCK, owners), owners[0].evidence.base)
    scaled = []
    for owner in owners:
        evidence = owner.evidence
        base, own = (
            {name: factor * array for name, array in weights.items()}
            for weights in (evidence.base, evidence.own)
        )
        scaled.append(replace(owner, evidence=replace(evidence, base=base, own=own)))
    total = summed(method, BLOCK, scaled)
    second = method.solve(BLOCK, total, scaled[0].evidence.base)
    for name in BLOCK.shapes:
        np.testing.assert_array_equal(second.weights[name], factor * first.weights[name])


@settings(max_examples=60, deadline=None)
@given(_owners(), st.sampled_from(["average", "fisher"]))
def test_entrywise_means_stay_between_the_owners(owners: tuple[Owner, ...], name: str) -> None:
    method = METHODS[name]
    solved = method.solve(BLOCK, summed(method, BLOCK, owners), owners[0].evidence.base)
    for tensor in BLOCK.shapes:
        own = np.stack([owner.evidence.own[tensor] for owner in owners])
        # Sums of five terms of at most 1.1, numerator and denominator.
        slack = 4 * 5 * 1.1 * 2.0**-52
        assert (solved.weights[tensor] >= own.min(axis=0) - slack).all()
        assert (solved.weights[tensor] <= own.max(axis=0) + slack).all()


@settings(max_examples=60, deadline=None)
@given(_owners(), st.floats(0.01, 1.0))
def test_ties_mirrors_when_every_delta_is_negated(
    owners: tuple[Owner, ...], density: float
) -> None:
    """No sign is preferred, even where the votes cancel."""
    base = owners[0].evidence.base
    zero = {name: np.zeros_like(array) for name, array in base.items()}
    method = Ties(density=density)
    results = []
    for sign in (1.0, -1.0):
        # Rounded to quarters of the range, so that votes often cancel.
        total = reduce(
            add,
            (
                method.contribution(
                    BLOCK,
                    type(o.evidence)(
                        zero,
                        {n: sign * np.rint(40 * (o.evidence.own[n] - base[n])) for n in base},
                        tokens=1,
                    ),
                )
                for o in owners
            ),
        )
        results.append(method.solve(BLOCK, total, zero).weights)
    for name in base:
        np.testing.assert_array_equal(results[0][name], -results[1][name])
