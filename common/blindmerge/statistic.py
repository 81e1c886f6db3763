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
    "packed_size",
    "size_bytes",
    "unpack_symmetric",
]

Array: TypeAlias = npt.NDArray[np.float64]
Schema: TypeAlias = Mapping[str, tuple[int, ...]]
"""The name and shape of every array; all are float64."""


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

    matrix: [width, width]; only its upper triangle is read.   Returns [width(width+1)/2].
    Raises SchemaMismatch if `matrix` is not square.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise SchemaMismatch(f"a symmetric matrix is square, not {list(matrix.shape)}")
    packed = np.empty(packed_size(len(matrix)))
    # Not LAPACK's dtrttp: it would first copy the whole matrix into Fortran order.
    for column in range(len(matrix)):
        packed[packed_size(column) : packed_size(column + 1)] = matrix[: column + 1, column]
    return packed


def unpack_symmetric(packed: Array, width: int) -> Array:
    """The symmetric matrix [width, width] of a packed triangle.

    Raises SchemaMismatch if `packed` is not [width(width+1)/2].
    """
    if packed.shape != (packed_size(width),):
        raise SchemaMismatch(f"a triangle of width {width} has {packed_size(width)} numbers")
    matrix = np.empty((width, width))
    for column in range(width):
        part = packed[packed_size(column) : packed_size(column + 1)]
        matrix[: column + 1, column] = part
        matrix[column, : column + 1] = part
    return matrix
