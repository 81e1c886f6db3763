"""Arrays as bytes on the wire: raw little-endian numbers, nothing to parse.

A receiver compares three short fields and a length before it touches the numbers, so a lie
about size allocates nothing. (`numpy.save`'s header would be parsed first.)
"""

import math
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from blindmerge.errors import SchemaMismatch

__all__ = ["WireArray", "from_wire", "to_wire"]

WireArray: TypeAlias = tuple[str, tuple[int, ...], str, bytes]
"""dtype, shape, serialisation, data: the four fields of `flwr.app.Array`."""

_SERIALISATION = "blindmerge/little-endian"
# Once ml_dtypes is imported, numpy knows bfloat16 by its name.
_DTYPES = (np.dtype(ml_dtypes.bfloat16).name, "float16", "float32", "float64", "uint8")
_MAX_DIMENSIONS = 8  # numpy refuses more than 64 with a ValueError
_MAX_SIZE = 2**48


def to_wire(array: npt.NDArray[Any]) -> WireArray:
    """The bytes of an array of floats or bytes, row by row."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return array.dtype.name, tuple(array.shape), _SERIALISATION, little.tobytes()


def from_wire(
    dtype: str, shape: tuple[int, ...], serialisation: str, data: bytes
) -> npt.NDArray[Any]:
    """The array, read-only, without a copy.

    Raises SchemaMismatch if the fields are not those of `to_wire` or the length does not fit.
    """
    if serialisation != _SERIALISATION or dtype not in _DTYPES:
        # Not quoted: a peer may have made these fields as long as it likes.
        raise SchemaMismatch(
            f"an array is not one of {', '.join(_DTYPES)}, serialised as {_SERIALISATION}"
        )
    if len(shape) > _MAX_DIMENSIONS or not all(_possible(size) for size in shape):
        raise SchemaMismatch("an array has an impossible shape")
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise SchemaMismatch(f"an array has {len(data)} bytes, its shape needs {expected}")
    little = np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<"))
    try:
        return little.astype(dtype, copy=False).reshape(shape)
    except ValueError as error:  # no numbers, but sizes such as (0, 2^48, 2^48)
        raise SchemaMismatch("an array has an impossible shape") from error


def _possible(size: object) -> bool:
    return type(size) is int and 0 <= size <= _MAX_SIZE
