"""Noised Gram matrices: sensitivity by brute force, exact sums, noise of the promised size."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from blindmerge.errors import ConfigInvalid, DataInvalid, NotFinite, SchemaMismatch
from blindmerge.privacy.mechanism import (
    LONGEST,
    GroupTerms,
    NoiseTerms,
    PrivateGrams,
    clipped,
    noised,
    project,
)
from blindmerge.statistic import Array, pack_symmetric, unpack_symmetric
from support.randomness import CounterRandomness

GROUPS = {"attention": GroupTerms(3, 1.0), "feed forward": GroupTerms(2, 0.3)}


def terms(clip: float = 2.0, multiplier: float = 1.0, bits: int = 20) -> NoiseTerms:
    return NoiseTerms(GROUPS, clip, multiplier, most_rows=6, bits=bits)


def unit(seed: int, size: float = 1.0, rows: int = 4) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: size * rng.standard_normal((rows, g.width)) for name, g in GROUPS.items()}


def moved(of: NoiseTerms, rows: dict[str, Array]) -> Fraction:
    """sum Delta_i^2 / sigma_i^2 over the packed triangles, in fractions, by the definition."""
    total = Fraction(0)
    for name in of.groups:
        q = [[int(x) for x in row] for row in clipped(of, rows)[name]]
        for i, j in itertools.combinations_with_replacement(range(of.groups[name].width), 2):
            entry = sum(row[i] * row[j] for row in q)
            variance = of.variance(name) if i == j else of.variance(name) / 2
            total += Fraction(entry**2) / variance
    return total


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize("clip", [0.5, 2.0, 7.3])
def test_brute_force_no_unit_of_small_integers_moves_the_release_by_more(
    bits: int, clip: float
) -> None:
    # rho <= 1 / (2 z^2) (PROOF §3.3), for every unit of two rows of a group of two.
    of = NoiseTerms({"g": GroupTerms(2, 1.7)}, clip, 0.5, most_rows=2, bits=bits)
    step = 2.0 ** -of.exponent("g")
    largest = Fraction(0)
    for numbers in itertools.product(range(-2, 3), repeat=4):
        rows = step * np.array(numbers, dtype=np.float64).reshape(2, 2) * 1.3
        largest = max(largest, moved(of, {"g": rows}))
    assert 0 < largest <= 1 / Fraction(0.5) ** 2


def test_the_bound_is_nearly_reached() -> None:
    # So it is not met by shrinking everything: 2 * 2^-10 of the margin and the rounding.
    of = terms(multiplier=2.0)
    for seed in range(5):
        cost = float(moved(of, unit(seed, size=10.0)))
        assert (1 - 2**-8) / 4 < cost <= 1 / 4


def test_small_units_are_not_changed_but_rounded() -> None:
    of = terms(clip=100.0)
    rows = unit(1)
    for name, integers in clipped(of, rows).items():
        scale = 2.0 ** of.exponent(name)
        assert np.abs(integers - scale * rows[name]).max() <= 0.5


def test_exponents_are_the_finest_that_fit() -> None:
    for clip, weight, bits in itertools.product((0.1, 1.0, 3e7), (1e-3, 1.0, 4.0), (2, 8, 20)):
        of = NoiseTerms({"g": GroupTerms(2, weight)}, clip, 1.0, 6, bits)
        square = of.largest**2 * Fraction(weight) / Fraction(clip)
        assert Fraction(4) ** of.exponent("g") <= square < Fraction(4) ** (of.exponent("g") + 1)


def test_norms_by_either_product_are_the_frobenius_norm_of_the_gram() -> None:
    for rows in (2, 6):
        of = NoiseTerms({"g": GroupTerms(4, 2.0)}, 1.0, 1.0, 6)
        x = np.random.default_rng(rows).standard_normal((rows, 4)) * 5
        norm = 2.0 * np.linalg.norm(x.T @ x)
        expected = x * math.sqrt(1 / norm) * 2.0 ** of.exponent("g")
        np.testing.assert_allclose(clipped(of, {"g": x})["g"], expected, rtol=2**-9, atol=1)


def test_the_layers_are_clipped_together() -> None:
    # A unit whose layers have norm C each is scaled by 1 / sqrt(layers).
    groups = {str(i): GroupTerms(1, 1.0) for i in range(4)}
    of = NoiseTerms(groups, 1.0, 1.0, 1)
    for integers in clipped(of, {name: np.ones((1, 1)) for name in groups}).values():
        gram = float(integers[0, 0]) ** 2 / 4.0 ** of.exponent("0")
        assert gram == pytest.approx(0.5, rel=2**-9)


def test_the_sum_is_exact_and_the_noise_is_that_of_the_sampler() -> None:
    of = NoiseTerms({"g": GroupTerms(5, 1.0)}, 1.0, 1.0, most_rows=LONGEST)
    sums = PrivateGrams(of)
    exact = np.zeros((5, 5), dtype=object)
    for seed in range(5):
        rows = np.random.default_rng(seed).standard_normal((700, 5))
        sums.add({"g": rows})
        integers = clipped(of, {"g": rows})["g"].astype(object)
        exact += integers.T @ integers
    released = sums.release(CounterRandomness(7))["g"]
    packed = noised(exact.astype(np.int64), of.variance("g"), CounterRandomness(7))
    np.testing.assert_array_equal(released, packed * 4.0 ** -of.exponent("g"))
    noise = unpack_symmetric(packed.astype(np.float64), 5) - exact.astype(np.float64)
    assert (noise != 0).all()
    with pytest.raises(RuntimeError, match="once"):
        sums.release(CounterRandomness(7))


def test_noise_has_sigma_on_the_diagonal_and_half_the_variance_off_it() -> None:
    of = NoiseTerms({"g": GroupTerms(300, 2.0)}, 3.0, 1.5, most_rows=6)
    noise = unpack_symmetric(PrivateGrams(of).release(CounterRandomness(8))["g"], 300)
    diagonal = np.diagonal(noise)
    upper = noise[np.triu_indices(300, 1)]
    # A sum of squares over the variance is chi-square with as many degrees of freedom.
    for numbers, std in ((diagonal, 2.25), (upper, 2.25 / 2**0.5)):
        cost = float(np.sum(numbers**2)) / std**2
        chi2 = stats.chi2(len(numbers))
        assert chi2.ppf(1e-9) < cost < chi2.isf(1e-9)
    assert of.noise_std("g") == 2.25
    # Wigner: the spectrum ends at sigma sqrt(2 d), here within 10 % (fluctuations: d^(-2/3)).
    edge = of.ridge("g", owners=1) / 0.3
    assert np.linalg.eigvalsh(noise)[-1] == pytest.approx(edge, rel=0.1)
    assert of.ridge("g", owners=4) == of.ridge("g", owners=1) / 2


def test_projection_is_positive_and_the_nearest() -> None:
    noise = np.random.default_rng(3).standard_normal((20, 20))
    matrix = noise + noise.T
    ours = unpack_symmetric(project(pack_symmetric(matrix), 20, ridge=0.0), 20)
    values = np.linalg.eigvalsh(matrix)
    # The distance to the cone is the norm of the negative eigenvalues (Higham 1988).
    assert np.linalg.norm(ours - matrix) == pytest.approx(np.linalg.norm(values[values < 0]))
    assert np.linalg.eigvalsh(ours)[0] > -1e-12
    lifted = unpack_symmetric(project(pack_symmetric(matrix), 20, ridge=0.5), 20)
    np.testing.assert_allclose(lifted, ours + 0.5 * np.eye(20), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip": 0.0}, "clip 0"),
        ({"clip": math.nan}, "clip nan"),
        ({"multiplier": 0.0}, "multiplier 0"),
        ({"multiplier": math.inf}, "multiplier inf"),
        ({"most_rows": 0}, "cap of 0"),
        ({"most_rows": LONGEST + 1}, "cap of"),
        ({"bits": 1}, "1 bits"),
        ({"bits": 21}, "21 bits"),
        ({"groups": {}}, "no layer"),
    ],
)
def test_terms_out_of_range_are_refused(change: dict[str, object], words: str) -> None:
    good: dict[str, object] = {"groups": GROUPS, "clip": 1.0, "multiplier": 1.0, "most_rows": 6}
    with pytest.raises(ConfigInvalid, match=words):
        NoiseTerms(**(good | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "weight"), [(0, 1.0), (1 << 16, 1.0), (3, 0.0), (3, math.nan)])
def test_groups_out_of_range_are_refused(width: int, weight: float) -> None:
    with pytest.raises(ConfigInvalid):
        GroupTerms(width, weight)


def test_bad_units_are_refused_without_a_number_of_theirs() -> None:
    good = unit(1)
    bad: list[tuple[dict[str, Array], type[Exception], str]] = [
        ({"attention": good["attention"]}, SchemaMismatch, "feed forward"),
        (good | {"attention": np.zeros((4, 2))}, SchemaMismatch, "attention"),
        (good | {"attention": np.zeros((7, 3))}, DataInvalid, "cap of 6"),
        (good | {"attention": np.full((4, 3), math.nan)}, NotFinite, "attention"),
        (good | {"attention": np.full((4, 3), 1e31)}, NotFinite, "attention"),
    ]
    for rows, kind, words in bad:
        with pytest.raises(kind, match=words):
            PrivateGrams(terms()).add(rows)


def test_an_empty_unit_and_a_unit_of_zeros_add_nothing() -> None:
    for rows in (0, 4):
        empty = {name: np.zeros((rows, g.width)) for name, g in GROUPS.items()}
        assert moved(terms(), empty) == 0
