"""The discrete Gaussian over the integers, exactly (PROOF.md §5).

P(x) = exp(-x^2 / (2 s)) / Z for every integer x, s rational. Exactly means: if the bits of the
source are uniform and independent, the samples have this distribution; no tail is cut off
and nothing is rounded, so nothing is added to delta. Candidates are drawn from a majorant with
integer weights and accepted by comparing a uniform number U, known bit by bit, with a probability
p. 53 bits of U and a float64 p with a proven bound on its error nearly always decide; where they do
not, more bits and more digits do.

How long it takes depends on how many candidates are rejected, which tells nothing about those
that are accepted, and, once in 2^44 samples, on the sample.
"""

from decimal import MAX_EMAX, MIN_EMIN, Context
from fractions import Fraction
from itertools import count
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from blindmerge.errors import ConfigInvalid
from blindmerge.secagg.secret import Randomness

__all__ = ["LARGEST_VARIANCE", "SMALLEST_VARIANCE", "DiscreteGaussian"]

_Integers: TypeAlias = npt.NDArray[np.int64]

SMALLEST_VARIANCE = Fraction(1, 64)
LARGEST_VARIANCE = Fraction(1 << 100)
"""Offsets in a cell stay below 2^48, so that float64 holds them."""

_FLOAT_ERROR = 2.0**-46  # relative, of the probabilities in float64 (PROOF.md §5.4)
_DIGITS = 40  # of the weights: 2^-64 of a weight is 10^-20
_BLOCK = 1 << 16  # candidates at a time: they stay in the cache


class DiscreteGaussian:
    """Draws integers with P(x) proportional to exp(-x^2 / (2 variance)).

    The numbers |x| = 2^k v + u are in cell v at offset u < 2^k. Cell v has the weight
    w_v >= scale exp(-(2^k v)^2 / (2 variance)), an integer; the cells from `tail` on have
    2^(tail - v), which is 2 together.
    """

    def __init__(self, variance: Fraction) -> None:
        """Raises ConfigInvalid unless SMALLEST_VARIANCE <= variance <= LARGEST_VARIANCE."""
        if not SMALLEST_VARIANCE <= variance <= LARGEST_VARIANCE:
            raise ConfigInvalid(
                f"noise of standard deviation {float(variance) ** 0.5:g} steps cannot be drawn",
                hint="choose a noise multiplier between 0.01 and 1000",
            )
        self.variance = variance
        # A power of two between sigma / 8 and sigma / 4, or 1.
        self._shift = max(0, (_floor_log2(variance) >> 1) - 2)
        self.tail = next(v for v in count(1) if self._exp_at(v) * (1 << 64) <= 1)
        heights = [self._exp_at(v) for v in range(self.tail)]
        self.scale = ((1 << 64) - 2 * self.tail - 4) // sum(heights)
        self.weights = [int(self.scale * height) + 2 for height in heights]
        ends = np.cumsum([*self.weights, 2], dtype=np.uint64)
        ratios = [float(self.scale * h / w) for h, w in zip(heights, self.weights, strict=True)]
        self._ends = ends
        self._ratios = np.array([*ratios, 0.0, 0.0])  # the tail is decided elsewhere

    def sample(self, size: int, rng: Randomness) -> _Integers:
        """`size` independent samples, int64 (PROOF.md §5.6 says why that is wide enough)."""
        samples = np.empty(size, dtype=np.int64)
        filled = 0
        while filled < size:
            wanted = size - filled
            some = self._accepted(min(_BLOCK, wanted + wanted // 4 + 16), rng)[:wanted]
            samples[filled : filled + len(some)] = some
            filled += len(some)
        return samples

    def _accepted(self, candidates: int, rng: Randomness) -> _Integers:
        """Those of so many candidates that are accepted, in their order."""
        words = np.frombuffer(rng.bytes(24 * candidates), dtype="<u8").reshape(3, candidates)
        cells = np.searchsorted(self._ends, words[0], side="right")
        offsets = ((words[1] >> np.uint64(1)) & np.uint64((1 << self._shift) - 1)).astype(np.int64)
        starts = cells << self._shift
        u = offsets.astype(np.float64)
        exponents = u * (u + 2.0 * starts) / (-2.0 * float(self.variance))
        chances = self._ratios[cells] * np.exp(exponents)
        uniform = (words[2] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        yes = uniform + 2.0**-53 <= chances * (1 - _FLOAT_ERROR)
        unsure = ~yes & (uniform < chances * (1 + _FLOAT_ERROR)) | (cells == self.tail)
        numbers = starts + offsets
        for index in np.flatnonzero(unsure):
            found = self._decided(int(cells[index]), int(offsets[index]), int(words[2, index]), rng)
            yes[index] = found is not None
            numbers[index] = found or 0
        # Zero has no sign: one of its two candidates is rejected.
        negative = (words[1] & np.uint64(1)).astype(bool)
        yes &= ~(negative & (numbers == 0))
        accepted: _Integers = np.where(negative, -numbers, numbers)[yes]
        return accepted

    def _decided(self, cell: int, offset: int, uniform: int, rng: Randomness) -> int | None:
        """The candidate's magnitude if it is accepted, by as many digits as that takes.

        uniform: the first 64 bits of U.
        """
        weight = Fraction(1)
        if cell < self.tail:
            weight = Fraction(self.weights[cell])
        else:
            while rng.bytes(1)[0] & 1:
                cell, weight = cell + 1, weight / 2
        number = (cell << self._shift) + offset
        for bits in count(64, 64):
            digits = bits // 3 + 10
            chance = self.scale * self._exp(number, digits) / weight
            error = chance / 10**digits
            if Fraction(uniform + 1, 1 << bits) <= chance - error:
                return number
            if Fraction(uniform, 1 << bits) >= chance + error:
                return None
            uniform = uniform << 64 | int.from_bytes(rng.bytes(8), "big")
        raise AssertionError("count() ends")

    def _exp_at(self, cell: int) -> Fraction:
        return self._exp(cell << self._shift, _DIGITS)

    def _exp(self, number: int, digits: int) -> Fraction:
        """exp(-number^2 / (2 variance)) with a relative error below 10^-digits."""
        # Decimal rounds each of the two operations correctly. The error of the quotient enters
        # times itself, which is below 10^10 for every number that is ever drawn.
        context = Context(prec=digits + 12, Emax=MAX_EMAX, Emin=MIN_EMIN)
        exponent = Fraction(-number * number) / (2 * self.variance)
        quotient = context.divide(exponent.numerator, exponent.denominator)
        return Fraction(context.exp(quotient))


def _floor_log2(value: Fraction) -> int:
    """The largest k with 2^k <= value."""
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if Fraction(2) ** guess <= value else guess - 1
