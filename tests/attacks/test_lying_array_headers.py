"""An array whose header lies about type, shape or length is refused and allocates nothing."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blindmerge.errors import SchemaMismatch
from blindmerge.wire import from_wire

STYPE = "blindmerge/little-endian"
SIZES = {"float16": 2, "float32": 4, "float64": 8}
_ANY_SIZE = st.one_of(
    st.integers(-3, 9),
    st.integers(2**31, 2**70),
    st.sampled_from([True, False, 2.0, "3", None, (2,), float("nan"), 10**5000]),
)


@given(
    dtype=st.sampled_from([*SIZES, "float128", "O", 7, ["float64"]]),
    shape=st.lists(_ANY_SIZE, max_size=70).map(tuple),
    data=st.binary(max_size=80),
)
@example(dtype="float64", shape=(1,) * 70, data=bytes(8))  # numpy: ValueError above 64
@example(dtype="float64", shape=(0, 2**48, 2**48), data=b"")  # numpy: ValueError, too big
@example(dtype="float64", shape=(10**5000,), data=b"")  # Python: ValueError when printed
@example(dtype="float64", shape=(2**62,) * 400, data=b"")  # the same of the product
@example(dtype="float64", shape=(-1, -8), data=bytes(64))
def test_whatever_the_header_says_it_is_refused_or_true(
    dtype: Any, shape: tuple[Any, ...], data: bytes
) -> None:
    try:
        array = from_wire(dtype, shape, STYPE, data)
    except SchemaMismatch:
        return
    assert array.shape == shape
    assert array.nbytes == len(data) == array.size * SIZES[dtype]


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20), (2**48,) * 8, (1000,)])
def test_a_huge_shape_allocates_nothing(shape: tuple[int, ...]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SchemaMismatch, match="16 bytes"):
            from_wire("float64", shape, STYPE, bytes(16))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("dtype", "shape", "stype"),
    [("x" * 10**6, (1,), STYPE), ("float64", (1,), "x" * 10**6), ("float64", (2**48,) * 8, STYPE)],
)
def test_the_refusal_is_short_however_long_the_header_is(
    dtype: str, shape: tuple[int, ...], stype: str
) -> None:
    with pytest.raises(SchemaMismatch) as raised:
        from_wire(dtype, shape, stype, bytes(8))
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("missing", [-1, 1, 8])
def test_a_length_that_does_not_fit_is_refused(missing: int) -> None:
    with pytest.raises(SchemaMismatch, match="its shape needs 48"):
        from_wire("float64", (2, 3), STYPE, bytes(48 - missing))
