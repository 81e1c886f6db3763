"""Real numbers in the ring of integers modulo 2^bits (secagg/SPEC.md §4).

A number is fixed point: q = rint(value * 2^e), stored modulo 2^bits in uint64, or in uint32 for
32 bits, where masks and sums take half the time and memory as well. The exponents
e are public and part of what is signed: one per array, one per row, or, for the packed
triangle of a symmetric matrix, one per row and column whose sum counts. They equilibrate:
rows of very different size keep the same relative precision. A number that could make the
sum of all owners wrap around is refused, never clipped.

The rule by which exponents are chosen: a public bound 2^m on the magnitude of a row gives
e = largest_scaled_log2(owners, bits) - m (`exponent_for`); the bounds come from a sample, the
statistic of the base model on public text (`calibrate`), or are given (`uniform`).

Which bounds: a sum that another is divided by must keep its relative precision. RegMean's Gram
matrices need a bound per row. Fisher's values differ by many orders of magnitude from tensor to
tensor, but those below the largest mean of their block times `Fisher.floor` are averaged anyway,
with or without rounding. `calibrate` gives every array bounds of its own, down to
2^-floor_bits of the largest number of its kind. The deltas of the base model are zero: a sample
takes them from a model fine-tuned on public text. (Measured in
tests/conformance/test_methods_under_masks.py.)
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from blindmerge.errors import NotFinite, Overflow, ProtocolBroken, SchemaMismatch
from blindmerge.statistic import Array, Schema, Statistic, packed_diagonal, packed_size

__all__ = [
    "ArrayLayout",
    "Bits",
    "Factors",
    "Layout",
    "Ring",
    "Scale",
    "calibrate",
    "error_bound",
    "exponent_for",
    "fits",
    "from_ring",
    "from_wire",
    "largest_scaled_log2",
    "longest_layout_bytes",
    "to_ring",
    "to_wire",
    "uniform",
]

Bits: TypeAlias = Literal[32, 48, 64]
"""Width of the ring: 64 by default, 48 and 32 for uploads of 6 and 4 bytes per number."""

Ring: TypeAlias = npt.NDArray[np.uint64] | npt.NDArray[np.uint32]
"""uint32 for 32 bits; for 48 the upper 16 bits of uint64 have no meaning."""

Factors: TypeAlias = Array | float
"""2^e for every number, or one for all; exact, and so is its reciprocal."""

_UNSIGNED: Mapping[Bits, Any] = {32: np.uint32, 48: np.uint64, 64: np.uint64}
_LITTLE: Mapping[Bits, str] = {32: "<u4", 48: "<u8", 64: "<u8"}
MAX_EXPONENT = 512  # 2.0 ** +-512 and its inverse are normal float64 numbers
_FIELDS_BYTES = 100  # keys and small numbers of an array, or of a layout: fewer
_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")


class Scale(BaseModel):
    """The exponents of an array.

    `uniform`: one for all.   `rows`: one per index of the first axis.   `triangle`: one per
    row of the symmetric matrix whose packed triangle the array is; entry (i, j) has
    exponents[i] + exponents[j].
    """

    model_config = _STRICT
    kind: Literal["uniform", "rows", "triangle"]
    exponents: Annotated[
        tuple[Annotated[int, Field(ge=-MAX_EXPONENT, le=MAX_EXPONENT)], ...], Field(min_length=1)
    ]


class ArrayLayout(BaseModel):
    """Name, shape and exponents of one array."""

    model_config = _STRICT
    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    scale: Scale

    @model_validator(mode="after")
    def _one_exponent_each(self) -> "ArrayLayout":
        count = len(self.scale.exponents)
        fitting = {
            "uniform": count == 1,
            "rows": bool(self.shape) and self.shape[0] == count,
            "triangle": self.shape == (packed_size(count),),
        }
        if not fitting[self.scale.kind]:
            raise ValueError(f"{count} '{self.scale.kind}' exponents do not fit the shape")
        if self.scale.kind == "triangle" and 2 * max(map(abs, self.scale.exponents)) > MAX_EXPONENT:
            raise ValueError("the exponents of a triangle are too large")
        return self

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @cached_property
    def _factors(self) -> Array:
        # Not exp2, which some processors round.
        return np.asarray(np.ldexp(1.0, np.array(self.scale.exponents, dtype=np.int64)))

    def factors(self, start: int, stop: int) -> Factors:
        """2^e of the numbers start:stop of the flattened array."""
        if self.scale.kind == "uniform":
            return float(self._factors[0])
        if self.scale.kind == "rows":
            width = self.size // self.shape[0]
            rows = np.arange(start // width, -(-stop // width))
            sizes = np.minimum((rows + 1) * width, stop) - np.maximum(rows * width, start)
            return np.repeat(self._factors[rows], sizes)
        # Packed column by column: column j starts at j(j+1)/2 and has j+1 numbers.
        first = (math.isqrt(8 * start + 1) - 1) // 2
        last = (math.isqrt(8 * (stop - 1) + 1) - 1) // 2
        columns = np.arange(first, last + 1)
        starts = columns * (columns + 1) // 2
        sizes = np.minimum(starts + columns + 1, stop) - np.maximum(starts, start)
        column = np.repeat(columns, sizes)
        row = np.arange(start, stop) - column * (column + 1) // 2
        return self._factors[row] * self._factors[column]


class Layout(BaseModel):
    """How a statistic lies in the ring: its arrays, flattened and joined, cut into blocks.

    owners: how many may be added.   block_elements: numbers in a block; the last is shorter.
    """

    model_config = _STRICT
    bits: Bits
    owners: Annotated[int, Field(ge=1, lt=2**31)]
    block_elements: Annotated[int, Field(ge=1, le=2**27)]
    arrays: Annotated[tuple[ArrayLayout, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> "Layout":
        if len({array.name for array in self.arrays}) != len(self.arrays):
            raise ValueError("an array occurs twice")
        return self

    @cached_property
    def shapes(self) -> Schema:
        """Names and shapes, in the order of the ring."""
        return {array.name: array.shape for array in self.arrays}

    @cached_property
    def elements(self) -> int:
        """Numbers in all arrays."""
        return sum(array.size for array in self.arrays)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.elements // self.block_elements)

    def block_size(self, block: int) -> int:
        """Numbers in a block."""
        return min(self.block_elements, self.elements - block * self.block_elements)

    def wire_bytes(self, block: int) -> int:
        """Bytes of a block on the wire."""
        return self.block_size(block) * self.bits // 8

    def encode(self, statistic: Statistic, block: int) -> Ring:
        """One block of `statistic` in the ring.

        Raises SchemaMismatch, NotFinite, or Overflow naming the array.
        """
        if dict(statistic.schema) != dict(self.shapes):
            raise SchemaMismatch("the statistic is not laid out as the manifest says")
        ring = self.zeros(block)
        for array, start, stop, at in self._parts(block):
            values = statistic[array.name].reshape(-1)[start:stop]
            ring[at : at + stop - start] = to_ring(
                values, array.factors(start, stop), self.owners, self.bits, name=array.name
            )
        return ring

    def decode(self, ring: Ring, block: int, into: Mapping[str, Array]) -> None:
        """Writes the numbers of a block of a sum into the arrays (C-contiguous) of `into`."""
        for array, start, stop, at in self._parts(block):
            part = ring[at : at + stop - start]
            flat = into[array.name].reshape(-1)
            flat[start:stop] = from_ring(part, array.factors(start, stop), self.bits)

    def zeros(self, block: int) -> Ring:
        """The zero of a block, to which what owners send is added."""
        return np.zeros(self.block_size(block), dtype=_UNSIGNED[self.bits])

    def empty(self) -> dict[str, Array]:
        """Zeros for `decode` to write into."""
        return {array.name: np.zeros(array.shape) for array in self.arrays}

    def _parts(self, block: int) -> list[tuple[ArrayLayout, int, int, int]]:
        """Of each array in the block: its numbers start:stop, and where they stand in it."""
        low = block * self.block_elements
        high = low + self.block_size(block)
        parts = []
        begin = 0
        for array in self.arrays:
            start, stop = max(low, begin), min(high, begin + array.size)
            if start < stop:
                parts.append((array, start - begin, stop - begin, start - low))
            begin += array.size
        return parts


def longest_layout_bytes(schema: Schema) -> int:
    """No layout of these arrays has more canonical bytes, if it is one of `uniform` or `calibrate`.

    At most three bytes for an exponent, and one exponent for an array, a row of a matrix, or of
    a triangle.
    """
    return _FIELDS_BYTES + sum(
        _FIELDS_BYTES + len(name.encode()) + 9 * len(shape) + 3 * _most_exponents(shape)
        for name, shape in schema.items()
    )


def _most_exponents(shape: tuple[int, ...]) -> int:
    if len(shape) >= 2:
        return shape[0]
    return math.isqrt(2 * math.prod(shape)) + 1  # a triangle of n rows has n(n+1)/2 numbers


def fits(largest_scaled: float, owners: int, bits: Bits) -> bool:
    """Whether numbers up to `largest_scaled` = max |value * 2^e| cannot wrap around.

    owners * (largest_scaled + 1) < 2^(bits-1), exactly; the 1 covers the rounding.
    """
    return math.isfinite(largest_scaled) and owners * (Fraction(largest_scaled) + 1) < 1 << bits - 1


def largest_scaled_log2(owners: int, bits: Bits) -> int:
    """The largest s such that numbers up to 2^s fit (`fits`).

    >>> largest_scaled_log2(3, 64), largest_scaled_log2(100, 48)
    (61, 40)
    """
    return (((1 << bits - 1) - 1) // owners - 1).bit_length() - 1


def exponent_for(bound_log2: int, owners: int, bits: Bits) -> int:
    """The exponent for numbers of magnitude at most 2^bound_log2: the finest that fits."""
    exponent = largest_scaled_log2(owners, bits) - bound_log2
    return max(-MAX_EXPONENT, min(MAX_EXPONENT, exponent))


def to_ring(
    values: Array, factors: Factors, owners: int, bits: Bits, *, name: str = "values"
) -> Ring:
    """rint(values * factors) modulo 2^bits.

    Raises NotFinite for NaN and infinity, Overflow for a number that does not fit; both tell
    the array's name and no number.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values * factors
        largest = max(float(scaled.max(initial=0.0)), -float(scaled.min(initial=0.0)))
    if not fits(largest, owners, bits):
        if not np.isfinite(values).all():
            raise NotFinite(f"array '{name}' holds NaN or infinity")
        raise Overflow(
            f"array '{name}' holds a number that the ring of {bits} bits cannot carry "
            f"for {owners} owners",
            hint="the plan needs larger public bounds for this array, or the 64-bit ring",
        )
    rounded = np.rint(scaled, out=scaled)
    if bits == 32:
        return rounded.astype(np.int32).view(np.uint32)
    ring = rounded.astype(np.int64).view(np.uint64)
    return ring & np.uint64(0xFFFF_FFFF_FFFF) if bits == 48 else ring


def from_ring(ring: Ring, factors: Factors, bits: Bits) -> Array:
    """The numbers of a sum of `to_ring`; the upper half of the ring is negative."""
    if bits == 32:
        return np.asarray(ring.view(np.int32) * (1.0 / factors))
    signed = ring.view(np.int64)
    if bits == 48:
        signed = (signed << np.int64(16)) >> np.int64(16)
    return np.asarray(signed * (1.0 / factors))


def error_bound(total: Array, factors: Factors, owners: int) -> Array:
    """How far a decoded sum may be from the exact sum of the owners' numbers.

    Half a step per owner for rint; and for the conversion of the integer sum q to float64
    at most 2^-53 |q|, which is below 2^-52 of the decoded number. Scaling by 2^e is exact.
    """
    return np.asarray(owners / (2.0 * factors) + 2.0**-52 * np.abs(total))


def to_wire(ring: Ring, bits: Bits) -> bytes:
    """Little-endian, 8, 6 or 4 bytes per number."""
    little = np.ascontiguousarray(ring, dtype=_LITTLE[bits])
    if bits != 48:
        return little.tobytes()
    return little.view(np.uint8).reshape(-1, 8)[:, :6].tobytes()


def from_wire(data: bytes, elements: int, bits: Bits) -> Ring:
    """The numbers of `to_wire`; but for 48 bits they are those of `data`, and cannot be written.

    Raises ProtocolBroken unless `data` holds exactly `elements` numbers.
    """
    if len(data) != elements * bits // 8:
        raise ProtocolBroken(
            f"a block has {len(data)} bytes instead of {elements * bits // 8}",
            hint="both sides must run the same plan",
        )
    if bits != 48:
        return np.frombuffer(data, dtype=_LITTLE[bits]).astype(_UNSIGNED[bits], copy=False)
    wide = np.zeros((elements, 8), dtype=np.uint8)
    wide[:, :6] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 6)
    return wide.reshape(-1).view("<u8").astype(np.uint64, copy=False)


def uniform(
    schema: Schema, bound_log2: int, *, owners: int, bits: Bits, block_elements: int
) -> Layout:
    """A layout with one public bound 2^bound_log2 for all numbers."""
    scale = Scale(kind="uniform", exponents=(exponent_for(bound_log2, owners, bits),))
    arrays = tuple(ArrayLayout(name=n, shape=s, scale=scale) for n, s in schema.items())
    return Layout(bits=bits, owners=owners, block_elements=block_elements, arrays=arrays)


def calibrate(
    sample: Statistic,
    *,
    margin_bits: int,
    floor_bits: int,
    owners: int,
    bits: Bits,
    block_elements: int,
) -> Layout:
    """A layout whose bounds are those of a public sample, times 2^margin_bits.

    sample: a statistic that everybody may know, such as the base model's on public text.
    Packed Gram matrices (`...:gram`, `...:half-gram`) get `triangle` exponents from their
    diagonal, since |G_ij| is at most sqrt(G_ii G_jj); matrices one exponent per row, the rest
    one per array.
    floor_bits: no row counts as fainter than the largest number of its kind (`...:fisher`)
    times 2^-floor_bits; at owners it may be stronger than in the sample. Where a kind is zero
    throughout the sample the bound is 1, times 2^margin_bits.
    """
    largest = largest_scaled_log2(owners, bits)
    peaks: dict[str, float] = {}
    for name in sample.schema:
        peaks[_kind(name)] = max(peaks.get(_kind(name), 0.0), float(np.abs(sample[name]).max()))
    arrays = []
    for name, shape in sample.schema.items():
        magnitude = np.abs(sample[name])
        kind: Literal["uniform", "rows", "triangle"] = "uniform"
        rows = np.atleast_1d(magnitude.max())
        if name.endswith((":gram", ":half-gram")) and len(shape) == 1:
            kind = "triangle"
            width = (math.isqrt(8 * shape[0] + 1) - 1) // 2
            rows = packed_diagonal(magnitude, width)
        elif len(shape) >= 2:
            kind = "rows"
            rows = magnitude.reshape(shape[0], -1).max(axis=1)
        bounds = np.maximum(rows, np.ldexp(peaks[_kind(name)], -floor_bits))
        # Below the next power of two, which of zero is 2^0.
        exponents, limit = largest - margin_bits - np.frexp(bounds)[1], MAX_EXPONENT
        if kind == "triangle":  # half of it for the row, half for the column
            exponents, limit = exponents // 2, limit // 2
        clipped = np.clip(exponents, -limit, limit)
        scale = Scale(kind=kind, exponents=tuple(int(exponent) for exponent in clipped))
        arrays.append(ArrayLayout(name=name, shape=shape, scale=scale))
    return Layout(bits=bits, owners=owners, block_elements=block_elements, arrays=tuple(arrays))


def _kind(name: str) -> str:
    return name.rpartition(":")[2]
