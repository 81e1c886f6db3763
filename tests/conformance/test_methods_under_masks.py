"""Every merge method through the whole secure sum: masks and the ring cost no quality.

Bounds. A decoded sum is within e = `error_bound` of the exact one, entry by entry. With
u = 2^-53, sums s, errors e and exact quotients q = a / b, a quotient is off by at most
(e_a + |q| e_b) / (b - e_b). That is `_of_quotient`, and all that methods need which work entry
by entry. RegMean solves A y = b with A = S + rho t I, b = M - S D, and merges to D + y. With
Z = ||A^-1|| (all norms are maximum norms, largest row sums of matrices), e_A = width (1 + rho)
e_S and e_b = e_M + width e_S |D| + ||S|| e_D it is off by at most

    e_D + Z (e_b + e_A |y|) / (1 - Z e_A)

and by the rounding of two Cholesky solves, 2 width (3 width + 1) u Z ||A|| |y| at most (Higham
2002, theorem 10.4). Plain float64 sums of K terms add K u sum|x| to e; a last rounding of
every merged number is u |W|.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest

from blindmerge.encoding import Bits, Layout, calibrate, error_bound, uniform
from blindmerge.merge import METHODS, Average, Fisher, MergeMethod, TaskArithmetic, Ties
from blindmerge.merge.least_squares import LeastSquares
from blindmerge.secagg.messages import Limits
from blindmerge.statistic import Array, Statistic, unpack_symmetric
from support.evidence import Owner, make_owners, small_block, summed
from support.secure_sum import Outcome, federation, manifest_for

U = 2.0**-53
BLOCK = small_block()
COUNT, DROPPED = 5, 2
BLOCK_ELEMENTS = 100  # several blocks, the last of them shorter

# One owner more than the federation has: what it would send is public.
*OWNERS, PUBLIC = make_owners(BLOCK, np.random.default_rng(11), count=COUNT + 1)
BASE = OWNERS[0].evidence.base


Rule = Callable[[MergeMethod, Bits], Layout]


def calibrated(method: MergeMethod, bits: Bits) -> Layout:
    """Bounds 64 times those of the public owner; no row's is below that array's largest number."""
    sample = method.contribution(BLOCK, PUBLIC.evidence)
    return calibrate(
        sample,
        margin_bits=6,
        floor_bits=6,
        owners=COUNT,
        bits=bits,
        block_elements=BLOCK_ELEMENTS,
    )


def one_bound(method: MergeMethod, bits: Bits) -> Layout:
    """All numbers, rows and Gram matrices too, are below 2^10."""
    schema = method.schema_of(BLOCK)
    return uniform(schema, 10, owners=COUNT, bits=bits, block_elements=BLOCK_ELEMENTS)


def secure_sum(
    statistics: Sequence[Statistic], layout: Layout, gone: Mapping[int, str]
) -> tuple[Outcome, tuple[int, ...]]:
    """The sum through keys, shares, masks and drop-outs, and who is in it."""
    owners = federation(len(statistics))
    manifest = manifest_for(owners.roster, parts=[layout])
    limits = Limits.of(manifest)
    owners.jobs = [replace(job, limits=limits) for job in owners.jobs]
    owners.statistics = list(statistics)
    owners.gone = dict(gone)
    outcome = owners.run(manifest)
    assert not owners.errors
    return outcome, tuple(seat for seat in range(len(statistics)) if seat not in gone)


def errors_of(layout: Layout, statistics: Sequence[Statistic], total: Statistic) -> "Errors":
    """How far sums may be off, those in the ring and those in float64 together."""
    errors = {}
    for array in layout.arrays:
        factors = np.asarray(array.factors(0, array.size))
        flat = total[array.name].reshape(-1)
        ring = error_bound(flat, factors, len(statistics)).reshape(array.shape)
        largest = sum(np.abs(each[array.name]) for each in statistics)
        errors[array.name] = np.asarray(ring + len(statistics) * U * largest)
    return Errors(total, errors)


@dataclass(frozen=True)
class Errors:
    """Sums, and by how much each may differ from the exact one, entry by entry."""

    total: Statistic
    of: Mapping[str, Array]

    def of_quotient(self, above: str, below: str) -> Array:
        """Of total[above] / total[below]."""
        return _of_quotient(self.total[above], self.of[above], self.total[below], self.of[below])


def _of_quotient(above: Array, e_above: Array, below: Array, e_below: Array) -> Array:
    assert (below > 2 * e_below).all()
    return np.asarray((e_above + np.abs(above / below) * e_below) / (below - e_below))


def tolerances(method: MergeMethod, sums: Errors) -> dict[str, Array]:
    """By how much merged tensors may differ."""
    match method:
        case Average():
            found = {n: sums.of_quotient(f"{n}:delta", "weight") for n in BLOCK.shapes}
        case TaskArithmetic():
            found = {n: method.scale * sums.of[f"{n}:delta"] for n in BLOCK.shapes}
        case Fisher():
            found = {n: _fisher(method, sums, n) for n in BLOCK.shapes}
        case Ties():
            found = {n: method.scale * _ties(sums, n) for n in BLOCK.shapes}
        case LeastSquares():
            found = _least_squares(method, sums)
        case _:
            raise AssertionError(f"derive a bound for '{method.name}'")
    # Sums, quotient, product: a few roundings of numbers not larger than base plus move.
    return {name: found[name] + 16 * U * (np.abs(BASE[name]) + 1) for name in BLOCK.shapes}


def _fisher(method: Fisher, sums: Errors, name: str) -> Array:
    fisher, moment, delta = (
        sums.total[f"{name}:{kind}"] for kind in ("fisher", "fisher-delta", "delta")
    )
    e_fisher, e_moment, e_delta = (
        sums.of[f"{name}:{kind}"] for kind in ("fisher", "fisher-delta", "delta")
    )
    every = [f"{each}:fisher" for each in BLOCK.shapes]
    floor = method.floor * max(sums.total[each].mean() for each in every)
    e_floor = method.floor * max(sums.of[each].max() for each in every)
    owners = sums.total["weight"]
    mean, e_mean = delta / owners, _of_quotient(delta, e_delta, owners, sums.of["weight"])
    above, below = moment + floor * mean, fisher + floor
    e_above = e_moment + floor * e_mean + e_floor * (np.abs(mean) + e_mean)
    return _of_quotient(above, e_above, below, e_fisher + e_floor)


def _ties(sums: Errors, name: str) -> Array:
    total, of = sums.total, sums.of
    both = total[f"{name}:positive"] + total[f"{name}:negative"]
    e_both = of[f"{name}:positive"] + of[f"{name}:negative"]
    # An election is won by more than the rounding, or nobody sent anything at all.
    assert ((np.abs(both) > e_both) | (both == 0)).all()
    worst = np.zeros(both.shape)
    for side, sign in (("positive", 1), ("negative", -1)):
        won = np.sign(both) == sign
        count = np.where(won, total[f"{name}:{side}-count"], 1.0)
        above = np.where(won, total[f"{name}:{side}"], 0.0)
        error = _of_quotient(above, of[f"{name}:{side}"], count, of[f"{name}:{side}-count"])
        worst = np.maximum(worst, np.where(won, error, 0.0))
    return worst


def _least_squares(method: LeastSquares, sums: Errors) -> dict[str, Array]:
    total, of = sums.total, sums.of
    found = {m.name: sums.of_quotient(f"{m.name}:delta", "weight") for m in BLOCK.means}
    for group in BLOCK.groups:
        width = group.width
        gram = unpack_symmetric(total[f"{group.name}:gram"], width)
        matrix = gram + method.ridge * np.trace(gram) / width * np.eye(width)
        inverse = np.linalg.norm(np.linalg.inv(matrix), np.inf)
        e_gram = of[f"{group.name}:gram"].max()
        e_matrix = width * (1 + method.ridge) * e_gram
        for layer in group.layers:
            mean = total[f"{layer.name}:delta"] / total["weight"]
            e_mean = sums.of_quotient(f"{layer.name}:delta", "weight").max()
            y = np.linalg.solve(matrix, total[f"{layer.name}:moment"] - gram @ mean)
            e_target = of[f"{layer.name}:moment"].max() + width * e_gram * np.abs(mean).max()
            e_target += np.linalg.norm(gram, np.inf) * (e_mean + width * U * np.abs(mean).max())
            largest = np.abs(y).max()
            off = inverse * (e_target + e_matrix * largest) / (1 - inverse * e_matrix)
            condition = inverse * np.linalg.norm(matrix, np.inf)
            off += 2 * width * (3 * width + 1) * U * condition * largest
            for tensor in layer.tensors:
                found[tensor] = np.full(BLOCK.shapes[tensor], e_mean + off)
    return found


def assert_sum_in_bound(total: Statistic, statistics: Sequence[Statistic], layout: Layout) -> None:
    """Against the exact sum, in fractions."""
    for array in layout.arrays:
        flat = total[array.name].reshape(-1)
        factors = np.broadcast_to(np.asarray(array.factors(0, array.size)), flat.shape)
        bounds = error_bound(flat, factors, len(statistics))
        parts = [each[array.name].reshape(-1) for each in statistics]
        for place, decoded in enumerate(flat):
            exact = sum(Fraction(float(part[place])) for part in parts)
            assert abs(Fraction(float(decoded)) - exact) <= Fraction(float(bounds[place]))


LARGEST_ERROR = {64: 1e-13, 48: 1e-9, 32: 1e-9 * 2**16}


@pytest.mark.parametrize("gone", [{}, {DROPPED: "R2"}], ids=["everybody", "one drop-out"])
@pytest.mark.parametrize("rule", [calibrated, one_bound], ids=["calibrated", "one bound"])
@pytest.mark.parametrize(
    ("method", "bits"),
    [
        pytest.param(method, bits, id=f"{name}, {bits} bits")
        for name, method in METHODS.items()
        for bits in LARGEST_ERROR
        if bits != 32 or name != "fisher"
    ],
)
def test_masks_change_nothing_beyond_the_rounding(
    method: MergeMethod, rule: Rule, bits: Bits, gone: Mapping[int, str]
) -> None:
    layout = rule(method, bits)
    statistics = [method.contribution(BLOCK, owner.evidence) for owner in OWNERS]
    outcome, survivors = secure_sum(statistics, layout, gone)
    assert outcome.transcript.sets.u3 == survivors
    alive = [statistics[seat] for seat in survivors]
    assert_sum_in_bound(outcome.total, alive, layout)

    plain = summed(method, BLOCK, [OWNERS[seat] for seat in survivors])
    expected = method.solve(BLOCK, plain, BASE).weights
    solved = method.solve(BLOCK, outcome.total, BASE)
    merged = solved.weights
    # RegMean and its relatives regress: a fallback to the average would agree too easily.
    assert all(report.fallback is None for report in solved.layers)
    atol = tolerances(method, errors_of(layout, alive, outcome.total))
    for name in BLOCK.shapes:
        assert (np.abs(merged[name] - expected[name]) <= atol[name]).all(), name
        # Merged numbers are 0.1 to 1.5: relative errors are at most ten times as large.
        assert atol[name].max() < LARGEST_ERROR[bits]


FAINT, UNUSED = "dense.weight", "words.weight"


def _faint(owner: Owner) -> Owner:
    """One tensor, and one row of another, have hardly any Fisher information."""
    fishers = dict(owner.evidence.fishers)
    fishers[FAINT] = 2.0**-50 * fishers[FAINT]
    fishers[UNUSED] = fishers[UNUSED].copy()
    fishers[UNUSED][3] *= 2.0**-60
    return replace(owner, evidence=replace(owner.evidence, fishers=fishers))


def _fisher_layout(bits: Bits) -> Layout:
    """The floor lies below the faintest tensor."""
    sample = Fisher().contribution(BLOCK, _faint(PUBLIC).evidence)
    return calibrate(
        sample,
        margin_bits=6,
        floor_bits=60,
        owners=COUNT,
        bits=bits,
        block_elements=BLOCK_ELEMENTS,
    )


FISHER_RULES: dict[str, Layout] = {
    "bounds of a sample, 64": _fisher_layout(64),
    "bounds of a sample, 48": _fisher_layout(48),
    "one bound for all, 48": one_bound(Fisher(), 48),
    "one bound for all, 64": one_bound(Fisher(), 64),
}


@pytest.mark.parametrize("layout", FISHER_RULES.values(), ids=FISHER_RULES.keys())
def test_fisher_values_that_rounding_loses_lie_below_the_floor(layout: Layout) -> None:
    method, faint = Fisher(), [_faint(owner) for owner in OWNERS]
    statistics = [method.contribution(BLOCK, owner.evidence) for owner in faint]
    outcome, _ = secure_sum(statistics, layout, {})
    assert_sum_in_bound(outcome.total, statistics, layout)
    merged = method.solve(BLOCK, outcome.total, BASE).weights
    expected = method.solve(BLOCK, summed(method, BLOCK, faint), BASE).weights
    average = Average().solve(BLOCK, summed(Average(), BLOCK, faint), BASE).weights

    errors = errors_of(layout, statistics, outcome.total)
    for name, atol in tolerances(method, errors).items():
        assert (np.abs(merged[name] - expected[name]) <= atol).all(), name
        # The floor is 2^-20 of the largest mean; in 48 bits one bound of 2^10 leaves 2^-31.
        assert atol.max() < 2.0**-7, name
    # A faint tensor is averaged: 2^-50 of information over a floor of 2^-20 moves it by 2^-30.
    np.testing.assert_allclose(expected[FAINT], average[FAINT], rtol=0, atol=1e-8)
    # Faint rows beside strong ones lie below Fisher's own floor: averaged with or without masks.
    np.testing.assert_allclose(merged[UNUSED][3], expected[UNUSED][3], rtol=0, atol=1e-5)
    np.testing.assert_allclose(expected[UNUSED][3], average[UNUSED][3], rtol=0, atol=1e-8)
