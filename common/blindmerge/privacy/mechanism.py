"""Gram matrices of all groups of a model, clipped jointly and noised (PROOF.md §2 to §4, §7).

    nu_s = sqrt(sum_l a_l^2 ||X_sl^T X_sl||_F^2)      one unit s: an example, or all of a person
    Q_sl = rint(2^e_l sqrt(min(1, C / nu_s)) X_sl)    integers, their norm checked again
    G~_l = 4^-e_l (sum_s Q_sl^T Q_sl + E_l)

with E_l discrete Gaussian, of standard deviation sigma_l = z C 4^e_l / a_l on the diagonal and
sigma_l / sqrt(2) off it. C, a_l, z and the limits are public; e_l follows from them. All of
G~ together is one release of rho = 1 / (2 z^2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from blindmerge.errors import ConfigInvalid, DataInvalid, NotFinite, SchemaMismatch
from blindmerge.privacy.sampler import DiscreteGaussian
from blindmerge.secagg.secret import Randomness
from blindmerge.statistic import Array, pack_symmetric, packed_size, unpack_symmetric

__all__ = [
    "LONGEST",
    "MOST_UNITS",
    "WIDEST",
    "GroupTerms",
    "NoiseTerms",
    "PrivateGrams",
    "clipped",
    "noised",
    "project",
]

_Integers: TypeAlias = npt.NDArray[np.int64]
_Rows: TypeAlias = npt.NDArray[np.int32]

MOST_UNITS = 1 << 24  # with integers of 20 bits a sum stays below 2^62
LONGEST = 1 << 14  # rows of a unit
WIDEST = 1 << 15  # inputs of a layer
_BUFFERED = 1 << 10  # rows before a product is made: LONGEST + _BUFFERED <= 2^15
_MARGIN = 1 - 2.0**-10  # below the clip, so that rounding rarely passes it
_SLACK = 1 + 2.0**-20  # above the rounding of any norm (PROOF.md §4.3)


@dataclass(frozen=True, slots=True)
class GroupTerms:
    """Of one group: inputs (with the one of the bias) and weight a_l in the joint norm."""

    width: int
    weight: float

    def __post_init__(self) -> None:
        if not 1 <= self.width <= WIDEST:
            raise ConfigInvalid(f"a layer of {self.width} inputs is not between 1 and {WIDEST}")
        if not 2.0**-64 <= self.weight <= 2.0**64:
            raise ConfigInvalid(f"layer weight {self.weight:g} is not between 2^-64 and 2^64")


@dataclass(frozen=True, slots=True)
class NoiseTerms:
    """What everybody knows about the noise.

    groups: by name.   clip: C, the largest norm of a unit.   multiplier: z, noise per clip.
    most_rows: rows of a unit; a longer one is refused.   bits: of the integers, with sign.
    Raises ConfigInvalid for what is out of range.
    """

    groups: Mapping[str, GroupTerms]
    clip: float
    multiplier: float
    most_rows: int
    bits: int = 20

    def __post_init__(self) -> None:
        if not 2.0**-64 <= self.clip <= 2.0**64:
            raise ConfigInvalid(
                f"clip {self.clip:g} is not between 2^-64 and 2^64",
                hint="take the median norm of examples of public text",
            )
        if not 0.01 <= self.multiplier <= 1000:
            raise ConfigInvalid(
                f"noise multiplier {self.multiplier:g} is not between 0.01 and 1000",
                hint="choose an epsilon between 0.1 and 100",
            )
        if not 1 <= self.most_rows <= LONGEST:
            raise ConfigInvalid(f"a cap of {self.most_rows} rows is not between 1 and {LONGEST}")
        if not 2 <= self.bits <= 20:
            raise ConfigInvalid(f"integers of {self.bits} bits are not between 2 and 20")
        if not self.groups:
            raise ConfigInvalid("there is no layer whose Gram matrix would get noise")

    @property
    def largest(self) -> int:
        """Of the integers in Q: 2^(bits - 1) - 1."""
        return (1 << self.bits - 1) - 1

    def exponent(self, group: str) -> int:
        """e_l: the finest with 2^e_l sqrt(C / a_l) <= largest (PROOF.md §4.1)."""
        square = self.largest**2 * Fraction(self.groups[group].weight) / Fraction(self.clip)
        exponent = math.floor(math.log2(square) / 2)
        # log2 may be off by a rounding where `square` is close to a power of four.
        while Fraction(4) ** exponent > square:
            exponent -= 1
        return exponent

    def variance(self, group: str) -> Fraction:
        """sigma_l^2 on the diagonal of the integers, exactly; half of it off the diagonal."""
        weight, exponent = Fraction(self.groups[group].weight), self.exponent(group)
        deviation = Fraction(self.multiplier) * Fraction(self.clip) / weight
        return (deviation * Fraction(4) ** exponent) ** 2

    def noise_std(self, group: str) -> float:
        """z C / a_l: of the diagonal of G~, in its own units."""
        return self.multiplier * self.clip / self.groups[group].weight

    def ridge(self, group: str, owners: int) -> float:
        """r_l: 0.3 of the noise's largest eigenvalue, so that the sum of all owners has enough.

        The spectrum of the noise ends at sigma_l sqrt(2 width) (Wigner's semicircle).
        """
        edge = self.noise_std(group) * math.sqrt(2 * self.groups[group].width)
        return 0.3 * edge / math.sqrt(owners)


class PrivateGrams:
    """Adds up clipped units and releases the noised sums once.

    The number of units and of rows is as private as the rows: neither is released.
    """

    def __init__(self, terms: NoiseTerms) -> None:
        self._terms = terms
        self._units = 0
        self._sums: dict[str, _IntegerGram] | None = {
            name: _IntegerGram(group.width) for name, group in terms.groups.items()
        }

    def add(self, unit: Mapping[str, Array]) -> None:
        """Adds one example, or all of one person, stacked.

        unit: rows [n, width] of every group.
        Raises SchemaMismatch, NotFinite, and DataInvalid for more rows than the cap.
        """
        sums = self._open()
        if self._units == MOST_UNITS:
            raise DataInvalid(f"more than {MOST_UNITS} examples cannot be added exactly")
        for name, rows in clipped(self._terms, unit).items():
            sums[name].add(rows)
        self._units += 1

    def release(self, rng: Randomness) -> dict[str, Array]:
        """G~ of every group, packed; afterwards the sums are gone, so that noise is drawn once."""
        sums, self._sums = self._open(), None
        return {
            name: np.ldexp(
                noised(sums.pop(name).total(), self._terms.variance(name), rng).astype(np.float64),
                -2 * self._terms.exponent(name),
            )
            for name in sorted(self._terms.groups)
        }

    def _open(self) -> "dict[str, _IntegerGram]":
        if self._sums is None:
            raise RuntimeError("the sums were released, which is possible once")
        return self._sums


def clipped(terms: NoiseTerms, unit: Mapping[str, Array]) -> dict[str, _Rows]:
    """Q of one unit: integers whose norm is at most C (PROOF.md §4).

    Raises as `PrivateGrams.add`.
    """
    _check(terms, unit)
    # Scaled first, for the squares of the squares to stay in the range of float64.
    scaled = {name: np.ldexp(rows, terms.exponent(name)) for name, rows in unit.items()}
    norm = _joint_norm(terms, scaled)
    factor = min(1.0, math.sqrt(_MARGIN * terms.clip / norm)) if norm else 1.0
    while True:
        rounded = {name: np.rint(factor * rows) for name, rows in scaled.items()}
        norm = _joint_norm(terms, rounded)
        largest = max(float(np.abs(rows).max(initial=0.0)) for rows in rounded.values())
        if norm * _SLACK <= terms.clip and largest <= terms.largest:
            return {name: rows.astype(np.int32) for name, rows in rounded.items()}
        # Rounding passed the clip. Every step shrinks, and zeros pass: it ends.
        factor *= math.sqrt(_MARGIN * min(1.0, terms.clip / norm))


def noised(total: _Integers, variance: Fraction, rng: Randomness) -> _Integers:
    """The packed triangle of an integer Gram matrix plus E (PROOF.md §5, §3.2)."""
    width = len(total)
    packed = np.empty(packed_size(width), dtype=np.int64)
    for column in range(width):
        packed[packed_size(column) : packed_size(column + 1)] = total[: column + 1, column]
    noise = DiscreteGaussian(variance / 2).sample(len(packed), rng)
    index = np.arange(width)
    noise[index * (index + 3) // 2] = DiscreteGaussian(variance).sample(width, rng)
    packed += noise
    return packed


def project(packed: Array, width: int, ridge: float) -> Array:
    """The nearest positive semidefinite matrix (in the Frobenius norm) plus ridge I, packed.

    Post-processing of G~: it costs nothing (PROOF.md §7).
    """
    values, vectors = eigh(unpack_symmetric(packed, width), overwrite_a=True)
    vectors *= np.sqrt(np.maximum(values, 0.0))
    matrix = vectors @ vectors.T
    matrix[np.diag_indices(width)] += ridge
    return pack_symmetric(matrix)


class _IntegerGram:
    """The sum of Q^T Q, exactly: float64 products below 2^53, added as int64 (PROOF.md §4.4)."""

    def __init__(self, width: int) -> None:
        self._total = np.zeros((width, width), dtype=np.int64)
        self._buffer: list[_Rows] = []
        self._buffered = 0

    def add(self, rows: _Rows) -> None:
        """rows: [n, width], n <= LONGEST."""
        self._buffer.append(rows)
        self._buffered += len(rows)
        if self._buffered >= _BUFFERED:
            self._flush()

    def total(self) -> _Integers:
        """The whole symmetric matrix."""
        self._flush()
        return self._total

    def _flush(self) -> None:
        if self._buffer:
            rows = np.concatenate(self._buffer).astype(np.float64)
            self._total += (rows.T @ rows).astype(np.int64)
        self._buffer, self._buffered = [], 0


def _joint_norm(terms: NoiseTerms, scaled: Mapping[str, Array]) -> float:
    """nu of rows that are multiplied by 2^e_l; infinite if it is too large for float64.

    Of integers in range its relative error is below 2^-21 (PROOF.md §4.3).
    """
    total = 0.0
    with np.errstate(over="ignore"):
        for name, group in terms.groups.items():
            weight = math.ldexp(group.weight, -2 * terms.exponent(name))
            total += weight**2 * _gram_norm_squared(scaled[name])
    return math.sqrt(total)


def _gram_norm_squared(rows: Array) -> float:
    """||X^T X||_F^2 = ||X X^T||_F^2, by the smaller of the two products (PROOF.md §4.2)."""
    small = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    return float(np.sum(small * small))


def _check(terms: NoiseTerms, unit: Mapping[str, Array]) -> None:
    if unit.keys() != terms.groups.keys():
        odd = sorted(unit.keys() ^ terms.groups.keys())
        raise SchemaMismatch(f"an example has missing or extra layers: {', '.join(odd[:5])}")
    for name, group in terms.groups.items():
        rows = unit[name]
        if rows.dtype != np.float64 or rows.ndim != 2 or rows.shape[1] != group.width:
            raise SchemaMismatch(
                f"inputs of '{name}' are {rows.dtype}{list(rows.shape)}, "
                f"the terms say float64[rows, {group.width}]"
            )
        if len(rows) > terms.most_rows:
            raise DataInvalid(
                f"an example has more rows in '{name}' than the cap of {terms.most_rows}",
                hint="shorten the examples to the length that the plan says",
            )
        # Squared twice and added up, numbers up to 2^200 stay finite in float64.
        if not np.isfinite(rows).all() or np.abs(rows).max(initial=0.0) > 2.0**100:
            raise NotFinite(f"inputs of '{name}' hold NaN, infinity or a number above 2^100")
