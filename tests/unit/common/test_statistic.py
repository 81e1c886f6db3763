"""Statistics fit their schema or do not exist; triangles are numpy's."""

import numpy as np
import pytest

from blindmerge.errors import NotFinite, SchemaMismatch
from blindmerge.statistic import (
    Array,
    Schema,
    Statistic,
    pack_symmetric,
    packed_diagonal,
    packed_size,
    size_bytes,
    unpack_symmetric,
)

SCHEMA: Schema = {"b": (2, 3), "a": (1,)}


def arrays(b: float = 1.0, a: float = 2.0) -> dict[str, Array]:
    return {"b": np.full((2, 3), b), "a": np.array([a])}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"b": np.ones((2, 3))}, "a"),
        ({**arrays(), "extra": np.ones(1)}, "extra"),
        ({**arrays(), "b": np.ones((3, 2))}, "b"),
        ({**arrays(), "b": np.ones(6)}, "b"),
        ({**arrays(), "a": np.array(2.0)}, "a"),
        ({**arrays(), "a": np.ones(1, np.float32)}, "a"),
        ({**arrays(), "a": np.ones(1, np.int64)}, "a"),
        ({**arrays(), "a": np.ones(1, ">f8")}, "a"),
    ],
    ids=["missing", "extra", "transposed", "flat", "scalar", "float32", "int64", "big-endian"],
)
def test_arrays_that_differ_from_the_schema_are_refused(
    wrong: dict[str, Array], named: str
) -> None:
    with pytest.raises(SchemaMismatch, match=rf"\b{named}\b"):
        Statistic(SCHEMA, wrong)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (1, 2)])
def test_one_number_that_is_not_finite_is_refused(bad: float, at: tuple[int, int]) -> None:
    spoilt = arrays()
    spoilt["b"][at] = bad
    with pytest.raises(NotFinite, match="'b'"):
        Statistic(SCHEMA, spoilt)


def test_infinities_that_cancel_are_refused() -> None:
    spoilt = arrays()
    spoilt["b"][0] = [np.inf, -np.inf, 0.0]
    with pytest.raises(NotFinite, match="'b'"):
        Statistic(SCHEMA, spoilt)


def test_finite_numbers_whose_sum_overflows_are_accepted() -> None:
    assert Statistic(SCHEMA, arrays(b=1.5e308))["b"][0, 0] == 1.5e308


def test_addition_that_overflows_is_refused() -> None:
    large = Statistic(SCHEMA, arrays(b=1.5e308))
    with pytest.raises(NotFinite, match="'b'"):
        large + large


def test_addition_is_array_by_array() -> None:
    total = Statistic(SCHEMA, arrays(1.0, 2.0)) + Statistic(SCHEMA, arrays(10.0, 20.0))
    np.testing.assert_array_equal(total["b"], np.full((2, 3), 11.0))
    np.testing.assert_array_equal(total["a"], [22.0])


def test_order_is_the_schemas_not_that_of_the_arrays() -> None:
    shuffled = dict(reversed(arrays().items()))
    total = Statistic(SCHEMA, shuffled) + Statistic({"a": (1,), "b": (2, 3)}, arrays())
    assert list(total.schema) == list(total.arrays) == ["b", "a"]


@pytest.mark.parametrize("other", [{"b": (2, 3)}, {"b": (6,), "a": (1,)}, {**SCHEMA, "c": (1,)}])
def test_statistics_of_different_schemas_do_not_add(other: Schema) -> None:
    stranger = Statistic(other, {name: np.zeros(shape) for name, shape in other.items()})
    with pytest.raises(SchemaMismatch):
        Statistic(SCHEMA, arrays()) + stranger


def test_size_bytes_counts_eight_per_number() -> None:
    assert size_bytes(SCHEMA) == 8 * 7
    assert size_bytes({"scalar": ()}) == 8
    assert size_bytes({}) == 0


def test_size_bytes_of_an_absurd_schema_does_not_wrap() -> None:
    # 2^80 numbers: 64-bit arithmetic would say zero, and let them pass any limit.
    assert size_bytes({"absurd": (1 << 40, 1 << 40)}) == 8 << 80


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("width", [1, 2, 5, 33, 300])
def test_packed_triangle_is_numpys_upper_triangle_by_columns(width: int, order: str) -> None:
    square = np.random.default_rng(width).standard_normal((width, width))
    matrix = np.asarray(square + square.T, order="F" if order == "F" else "C")
    packed = pack_symmetric(matrix)
    # Column by column of the upper triangle is row by row of the lower one.
    rows, columns = np.tril_indices(width)
    np.testing.assert_array_equal(packed, matrix[columns, rows])
    np.testing.assert_array_equal(unpack_symmetric(packed, width), matrix)
    assert packed.shape == (packed_size(width),)


@pytest.mark.parametrize("width", [1, 5, 700])
def test_packed_diagonal(width: int) -> None:
    matrix = np.diag(np.arange(float(width)))
    np.testing.assert_array_equal(packed_diagonal(pack_symmetric(matrix), width), range(width))


def test_only_the_lower_triangle_is_read() -> None:
    matrix = np.array([[1.0, np.nan], [2.0, 3.0]])
    np.testing.assert_array_equal(pack_symmetric(matrix), [1.0, 2.0, 3.0])


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 2, 2)])
def test_only_square_matrices_are_packed(shape: tuple[int, ...]) -> None:
    with pytest.raises(SchemaMismatch, match="square"):
        pack_symmetric(np.zeros(shape))


@pytest.mark.parametrize("shape", [(5,), (7,), (2, 3), (0,)])
def test_triangle_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SchemaMismatch, match="6 numbers"):
        unpack_symmetric(np.zeros(shape), 3)
