"""The sampler draws the discrete Gaussian: against the formula, OpenDP, and exact fractions.

Seeds are fixed. Thresholds are quantiles of 1e-9, so that a new seed would fail once in 10^8 runs.
"""

import math
from fractions import Fraction

import numpy as np
import opendp.prelude as dp
import pytest
from scipy import stats

from blindmerge.errors import ConfigInvalid
from blindmerge.privacy.sampler import LARGEST_VARIANCE, SMALLEST_VARIANCE, DiscreteGaussian
from support.randomness import CounterRandomness

RARE = 1e-9
SAMPLES = 40_000
VARIANCES = [Fraction(1, 16), Fraction(1, 2), Fraction(10, 3), Fraction(100), Fraction(12345, 7)]


def _chances(variance: Fraction, reach: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """P(x) for |x| <= reach by the definition."""
    weights = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * float(variance)))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_frequencies_are_those_of_the_definition(variance: Fraction) -> None:
    samples = DiscreteGaussian(variance).sample(SAMPLES, CounterRandomness("chi-square"))
    reach = math.ceil(12 * float(variance) ** 0.5)
    expected = SAMPLES * _chances(variance, reach)
    counts = np.bincount(samples + reach, minlength=2 * reach + 1)
    often = expected >= 5  # the usual condition of the chi-square test
    observed = np.append(counts[often], counts[~often].sum())
    predicted = np.append(expected[often], expected[~often].sum())
    if predicted[-1] < 5:
        observed, predicted = (
            observed[:-1],
            predicted[:-1] * (observed[:-1].sum() / predicted[:-1].sum()),
        )
    assert stats.chisquare(observed, predicted).pvalue > RARE


@pytest.mark.parametrize("log2", [10, 60, 100])
def test_wide_ones_are_normal_in_distribution_moments_and_tails(log2: int) -> None:
    # With a uniform dither of one step the difference from the normal distribution is of the
    # order sigma^-2 <= 2^-10, far below what so many samples can see.
    sigma = 2.0 ** (log2 / 2)
    samples = DiscreteGaussian(Fraction(1 << log2)).sample(SAMPLES, CounterRandomness(log2))
    dither = np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLES)
    scaled = (samples + dither) / math.sqrt(sigma**2 + 1 / 12)
    assert stats.kstest(scaled, "norm").pvalue > RARE
    z = stats.norm.isf(RARE)
    for power, moment, deviation in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(np.mean(scaled**power) - moment) < z * deviation / SAMPLES**0.5
    for start in (2.0, 3.0, -2.0, -3.0):
        beyond = int(np.sum(scaled * np.sign(start) > abs(start)))
        chance = float(stats.norm.sf(abs(start)))
        assert stats.binomtest(beyond, SAMPLES, chance).pvalue > RARE


@pytest.mark.parametrize("sigma", [0.7, 9.5])
def test_opendp_draws_the_same_distribution(sigma: float) -> None:
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    theirs = np.array(dp.m.make_gaussian(*space, scale=sigma)([0] * 5000))
    ours = DiscreteGaussian(Fraction(sigma) ** 2).sample(20_000, CounterRandomness("opendp"))
    edges = np.quantile(ours, np.linspace(0, 1, 12)[1:-1])
    cells = np.unique(np.floor(edges)) + 0.5
    table = [
        np.bincount(np.searchsorted(cells, s), minlength=len(cells) + 1) for s in (ours, theirs)
    ]
    assert stats.chi2_contingency(np.array(table)).pvalue > RARE


@pytest.mark.parametrize(
    "variance", [SMALLEST_VARIANCE, *VARIANCES, Fraction(3 << 60), LARGEST_VARIANCE], ids=str
)
def test_weights_are_a_majorant_and_fit_64_bits(variance: Fraction) -> None:
    gaussian = DiscreteGaussian(variance)
    step = 1 << gaussian._shift
    assert 16 * step**2 <= variance or step == 1
    assert sum(gaussian.weights) + 2 < 1 << 64
    for cell, weight in enumerate(gaussian.weights):
        # log2 of the height is exact to about 2^-46; the weights have 62 bits and slack of 2.
        height = -float((cell * step) ** 2 / (2 * variance)) / math.log(2)
        assert math.log2(gaussian.scale) + height <= math.log2(weight) + 2**-40
    # Behind the table: 1 for its first cell, and at most half from cell to cell.
    first = -float((gaussian.tail * step) ** 2 / (2 * variance))
    assert math.log(gaussian.scale) + first <= 0
    assert float(step**2 * (2 * gaussian.tail + 1) / (2 * variance)) >= math.log(2)


class _Script:
    """Random bytes that a test chose."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)

    def bytes(self, size: int, /) -> bytes:
        part = self._parts.pop(0)
        assert len(part) == size
        return part


def test_close_calls_are_decided_by_more_digits() -> None:
    gaussian = DiscreteGaussian(Fraction(4))
    # p of the candidate 3 to 60 digits, by a second route: a rational power series.
    exponent = Fraction(9, 8)
    series = sum((-exponent) ** k / Fraction(math.factorial(k)) for k in range(60))
    chance = gaussian.scale * series / gaussian.weights[3]
    start = int(chance * (1 << 64))
    last = int(chance * (1 << 128)) - (start << 64)
    below, above = (last - 1).to_bytes(8, "big"), (last + 1).to_bytes(8, "big")
    assert gaussian._decided(3, 0, start, _Script(below)) == 3
    assert gaussian._decided(3, 0, start, _Script(above)) is None


def test_the_digits_agree_with_the_floats_when_they_are_asked_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gaussian = DiscreteGaussian(Fraction(999, 7))
    fast = gaussian.sample(300, CounterRandomness(1))
    monkeypatch.setattr("blindmerge.privacy.sampler._FLOAT_ERROR", 1.0)
    np.testing.assert_array_equal(fast, gaussian.sample(300, CounterRandomness(1)))


def test_the_tail_is_reached() -> None:
    gaussian = DiscreteGaussian(Fraction(4))
    assert (
        gaussian._decided(gaussian.tail, 0, 0, _Script(b"\1", b"\0", bytes(8))) == gaussian.tail + 1
    )
    assert gaussian._decided(gaussian.tail, 0, (1 << 64) - 1, _Script(b"\0")) is None


def test_both_signs_and_sizes_come_and_calls_differ() -> None:
    rng = CounterRandomness(2)
    gaussian = DiscreteGaussian(Fraction(9))
    assert gaussian.sample(0, rng).shape == (0,)
    one, two = gaussian.sample(100_000, rng), gaussian.sample(100_000, rng)
    assert one.dtype == np.int64
    assert one.min() < 0 < one.max()
    assert (one != two).any()


@pytest.mark.parametrize(
    "variance", [Fraction(0), -Fraction(1), Fraction(1, 65), 2 * LARGEST_VARIANCE]
)
def test_variances_out_of_range_are_refused(variance: Fraction) -> None:
    with pytest.raises(ConfigInvalid if variance >= 0 else (ConfigInvalid, TypeError)):
        DiscreteGaussian(variance)
