"""Arrays as bytes on the wire: raw little-endian numbers, nothing to parse.

A receiver compares three short fields and a length before it touches the numbers, so a lie
about size allocates nothing. (`numpy.save`'s header would be parsed first.)
"""

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from blindmerge.errors import SchemaMismatch

__all__ = ["WireArray", "from_wire", "to_wire"]

WireArray: TypeAlias = tuple[str, tuple[int, ...], str, bytes]
"""dtype, shape, serialisation, data: the four fields of `flwr.app.Array`."""

_SERIALISATION = "blindmerge/little-endian"
_DTYPES = ("float16", "float32", "float64")


def to_wire(array: npt.NDArray[Any]) -> WireArray:
    """The bytes of a float array, row by row."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return str(array.dtype), tuple(array.shape), _SERIALISATION, little.tobytes()


def from_wire(
    dtype: str, shape: tuple[int, ...], serialisation: str, data: bytes
) -> npt.NDArray[Any]:
    """The array, read-only, without a copy.

    Raises SchemaMismatch if the fields are not those of `to_wire` or the length does not fit.
    """
    if serialisation != _SERIALISATION or dtype not in _DTYPES:
        raise SchemaMismatch(f"an array came as {dtype!r}, serialised as {serialisation!r}")
    if any(type(size) is not int or size < 0 for size in shape):
        raise SchemaMismatch("an array has an impossible shape")
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise SchemaMismatch(f"an array has {len(data)} bytes, its shape needs {expected}")
    little = np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<"))
    return little.astype(dtype, copy=False).reshape(shape)
