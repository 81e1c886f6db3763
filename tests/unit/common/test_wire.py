"""Arrays on the wire: what is sent comes back, and nothing else does."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blindmerge.errors import SchemaMismatch
from blindmerge.wire import from_wire, to_wire

DTYPES = ("float16", "float32", "float64")
STYPE = "blindmerge/little-endian"


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    st.sampled_from(["<", ">"]),
)
def test_what_is_sent_comes_back_bit_for_bit(
    array: npt.NDArray[Any], order: Literal["<", ">"]
) -> None:
    received = from_wire(*to_wire(array.astype(array.dtype.newbyteorder(order))))
    assert received.dtype == array.dtype
    assert received.shape == array.shape
    assert received.tobytes() == np.ascontiguousarray(array).tobytes()


def test_the_bytes_are_those_of_ieee_754_little_endian() -> None:
    # IEEE 754: 1.0 is 0x3F800000, -2.0 is 0xC0000000.
    expected = ("float32", (1, 2), STYPE, bytes.fromhex("0000803f000000c0"))
    for order in "<>":
        assert to_wire(np.array([[1.0, -2.0]], dtype=f"{order}f4")) == expected


@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1], np.s_[1:, 1:]])
def test_views_are_sent_as_they_look(view: Any) -> None:
    whole = np.arange(30.0).reshape(5, 6)
    for array in (whole[view], whole[view].T):
        np.testing.assert_array_equal(from_wire(*to_wire(array)), array)


def test_a_received_array_is_a_read_only_view_of_the_message() -> None:
    data = to_wire(np.arange(4.0))[3]
    received = from_wire("float64", (4,), STYPE, data)
    assert np.shares_memory(received, np.frombuffer(data))
    assert not received.flags.writeable


@pytest.mark.parametrize("dtype", ["int64", "complex128", ">f8", "float128", "object", "", "V8"])
def test_other_types_are_refused_at_both_ends(dtype: str) -> None:
    with pytest.raises(SchemaMismatch, match="not one of bfloat16"):
        from_wire(dtype, (1,), STYPE, bytes(8))


def test_other_serialisations_are_refused() -> None:
    with pytest.raises(SchemaMismatch, match="little-endian"):
        from_wire("float64", (1,), "numpy.ndarray", bytes(8))
