"""Statistics: named float64 arrays that owners send and servers add.

A schema is fixed by the plan before any data is seen; a statistic fits its schema or does
not exist. Symmetric matrices travel as packed triangles, which halves them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from blindmerge.errors import NotFinite, SchemaMismatch

__all__ = [
    "Array",
    "Schema",
    "Statistic",
    "pack_symmetric",
    "packed_diagonal",
    "packed_size",
    "size_bytes",
    "unpack_symmetric",
]

Array: TypeAlias = npt.NDArray[np.float64]
Schema: TypeAlias = Mapping[str, tuple[int, ...]]
"""The name and shape of every array; all are float64."""

_PANEL = 256  # rows of a matrix that are mirrored at once, in the cache


@dataclass(frozen=True, slots=True)
class Statistic:
    """Arrays that fit a schema; `a + b` adds array by array, in the order of `a.schema`.

    Raises SchemaMismatch if a name, shape or type differs from the schema, and NotFinite
    if a number is NaN or infinite: one such number would silently spoil the sum.
    """

    schema: Schema
    arrays: Mapping[str, Array]

    def __post_init__(self) -> None:
        if self.arrays.keys() != self.schema.keys():
            odd = sorted(self.arrays.keys() ^ self.schema.keys())
            raise SchemaMismatch(f"statistic has missing or extra arrays: {', '.join(odd[:5])}")
        for name, shape in self.schema.items():
            array = self.arrays[name]
            if array.dtype != np.float64 or array.shape != shape:
                raise SchemaMismatch(
                    f"array '{name}' is {array.dtype}{list(array.shape)}, "
                    f"the plan says float64{list(shape)}"
                )
            # A sum is not finite if a term is not; it needs no mask as large as the array.
            with np.errstate(over="ignore", invalid="ignore"):
                total = np.sum(array)
            if not np.isfinite(total) and not np.isfinite(array).all():
                raise NotFinite(f"array '{name}' holds NaN or infinity")

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __add__(self, other: "Statistic") -> "Statistic":
        if dict(self.schema) != dict(other.schema):
            raise SchemaMismatch("statistics of different schemas cannot be added")
        with np.errstate(over="ignore"):
            arrays = {name: self.arrays[name] + other.arrays[name] for name in self.schema}
        return Statistic(self.schema, arrays)


def size_bytes(schema: Schema) -> int:
    """Bytes of the float64 numbers of a statistic with this schema."""
    return 8 * sum(math.prod(shape) for shape in schema.values())


def packed_size(width: int) -> int:
    """Numbers in the packed triangle of a symmetric matrix [width, width]."""
    return width * (width + 1) // 2


def pack_symmetric(matrix: Array) -> Array:
    """The upper triangle of a symmetric matrix, column by column (LAPACK's packed storage).

    matrix: [width, width]; only its lower triangle is read.   Returns [width(width+1)/2].
    Raises SchemaMismatch if `matrix` is not square.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise SchemaMismatch(f"a symmetric matrix is square, not {list(matrix.shape)}")
    packed = np.empty(packed_size(len(matrix)))
    # Rows of the lower triangle are columns of the upper one, and lie side by side.
    for row in range(len(matrix)):
        packed[packed_size(row) : packed_size(row + 1)] = matrix[row, : row + 1]
    return packed


def unpack_symmetric(packed: Array, width: int) -> Array:
    """The symmetric matrix [width, width] of a packed triangle.

    Raises SchemaMismatch if `packed` is not [width(width+1)/2].
    """
    if packed.shape != (packed_size(width),):
        raise SchemaMismatch(f"a triangle of width {width} has {packed_size(width)} numbers")
    matrix = np.empty((width, width))
    for row in range(width):
        matrix[row, : row + 1] = packed[packed_size(row) : packed_size(row + 1)]
    for start in range(0, width, _PANEL):
        panel = matrix[start : start + _PANEL]
        corner = panel[:, start : start + _PANEL]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T
        matrix[:start, start : start + _PANEL] = panel[:, :start].T
    return matrix


def packed_diagonal(packed: Array, width: int) -> Array:
    """The diagonal [width] of the symmetric matrix that `pack_symmetric` packed."""
    index = np.arange(width)
    return np.asarray(packed[index * (index + 3) // 2])
