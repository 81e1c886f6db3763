"""Layouts: blocks, refusals, calibration."""

import itertools
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from blindmerge import canonical
from blindmerge.encoding import (
    ArrayLayout,
    Bits,
    Layout,
    Scale,
    calibrate,
    error_bound,
    exponent_for,
    from_ring,
    from_wire,
    largest_scaled_log2,
    longest_layout_bytes,
    to_ring,
    to_wire,
    uniform,
)
from blindmerge.errors import NotFinite, Overflow, ProtocolBroken, SchemaMismatch
from blindmerge.statistic import Array, Statistic, pack_symmetric

ALL_BITS: tuple[Bits, ...] = get_args(Bits)
SCHEMA = {"weight": (1,), "a:delta": (5, 3), "g:gram": (10,)}


def _statistic(seed: int, scale: float = 1.0) -> Statistic:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 4)) * np.array([1e-3, 1.0, 1e3, 1e4])
    arrays = {
        "weight": np.array([1.0]),
        "a:delta": scale * rng.normal(size=(5, 3)) * np.array([[1e-6], [1], [1e2], [1], [1e5]]),
        "g:gram": pack_symmetric(x.T @ x),
    }
    return Statistic(SCHEMA, arrays)


def _sum_by_blocks(layout: Layout, statistics: list[Statistic]) -> dict[str, Array]:
    total = layout.empty()
    for block in range(layout.blocks):
        ring = layout.zeros(block)
        for statistic in statistics:
            data = to_wire(layout.encode(statistic, block), layout.bits)
            assert len(data) == layout.wire_bytes(block)
            ring += from_wire(data, layout.block_size(block), layout.bits)
        layout.decode(ring, block, total)
    return total


@pytest.mark.parametrize("bits", [32, 48, 64])
@pytest.mark.parametrize("block_elements", [1, 7, 26, 1000])
def test_blocks_of_any_size_give_the_same_sum(bits: Bits, block_elements: int) -> None:
    statistics = [_statistic(seed) for seed in range(3)]
    layout = calibrate(
        statistics[0],
        margin_bits=6,
        floor_bits=40,
        owners=3,
        bits=bits,
        block_elements=block_elements,
    )
    total = _sum_by_blocks(layout, statistics)
    for array in layout.arrays:
        factors = np.reshape(array.factors(0, array.size), -1)
        exact = sum(statistic[array.name].astype(np.longdouble) for statistic in statistics)
        error = np.abs(total[array.name] - exact).reshape(-1).astype(float)
        bound = error_bound(total[array.name].reshape(-1), factors, 3)
        # The long double reference has an error of its own, 2^-63 per addition.
        assert (error <= bound + 3 * 2.0**-63 * np.abs(exact).reshape(-1).astype(float)).all()


def test_calibrated_rows_keep_their_own_precision() -> None:
    # margin 4 and 3 owners leave 48 - 1 - 2 - 4 - 1 bits: every row keeps 40 bits, although
    # the sizes of the rows span 11 decimal digits.
    statistics = [_statistic(seed) for seed in range(3)]
    layout = calibrate(
        statistics[0], margin_bits=4, floor_bits=60, owners=3, bits=48, block_elements=100
    )
    total = _sum_by_blocks(layout, statistics)
    exact = sum(statistic["a:delta"] for statistic in statistics)
    rows = np.abs(statistics[0]["a:delta"]).max(axis=1)
    assert (np.abs(total["a:delta"] - exact).max(axis=1) <= 3 * rows * 2.0**-40).all()


def test_bounds_are_relative_to_the_sample_and_rows_have_a_floor() -> None:
    schema = {"rows": (4, 2), "vector": (3,), "empty": (2, 2), "faint:gram": (3,)}
    arrays = {
        "rows": np.array([[0.0, -5.0], [0.0, 0.0], [2.0**-3, 0.0], [2.0**-40, 1e-30]]),
        "vector": np.array([0.0, 1e-20, -3e-20]),
        "empty": np.zeros((2, 2)),
        "faint:gram": np.array([2.0**-50, 0.0, 2.0**-90]),  # a diagonal of 2^-50 and 2^-90
    }
    layout = calibrate(
        Statistic(schema, arrays), margin_bits=7, floor_bits=10, owners=3, bits=64, block_elements=9
    )
    exponents = {array.name: array.scale.exponents for array in layout.arrays}
    # 3 owners in 64 bits: 2^61. Bounds are below 2^3 = 8 (5), twice 2^-7 (5 * 2^-10), 2^-2.
    assert exponents["rows"] == tuple(61 - 7 - bound for bound in (3, -7, -2, -7))
    assert exponents["vector"] == (61 - 7 + 64,)  # 3e-20 is between 2^-65 and 2^-64
    assert exponents["empty"] == (61 - 7, 61 - 7)
    assert exponents["faint:gram"] == ((61 - 7 + 49) // 2, (61 - 7 + 59) // 2)


def test_overflow_is_refused_and_tells_no_number() -> None:
    layout = uniform(SCHEMA, 10, owners=3, bits=64, block_elements=100)
    statistic = _statistic(0, scale=12345.0)
    with pytest.raises(Overflow) as caught:
        layout.encode(statistic, 0)
    assert "a:delta" in caught.value.message
    assert "12345" not in caught.value.message


def test_the_bound_itself_fits_and_twice_it_does_not() -> None:
    for owners, bits in itertools.product((3, 4, 5, 100), ALL_BITS):
        factor = 2.0 ** exponent_for(7, owners, bits)
        to_ring(np.array([128.0, -128.0]), factor, owners, bits)
        with pytest.raises(Overflow, match=f"ring of {bits} bits"):
            to_ring(np.array([256.0]), factor, owners, bits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    # A statistic with them cannot be made; arrays that changed afterwards are caught too.
    statistic = _statistic(0)
    layout = uniform(SCHEMA, 40, owners=3, bits=64, block_elements=100)
    statistic["a:delta"][2, 1] = bad
    with pytest.raises(NotFinite, match="a:delta"):
        layout.encode(statistic, 0)


def test_a_product_beyond_float64_is_an_overflow() -> None:
    with pytest.raises(Overflow):
        to_ring(np.array([1e300]), 2.0**500, 3, 64)


def test_another_schema_is_refused() -> None:
    layout = uniform({"weight": (2,)}, 10, owners=3, bits=64, block_elements=100)
    with pytest.raises(SchemaMismatch):
        layout.encode(_statistic(0), 0)


@pytest.mark.parametrize(("bits", "dtype"), [(32, np.uint32), (48, np.uint64)])
def test_a_block_of_the_wrong_length_is_refused(bits: Bits, dtype: Any) -> None:
    data = to_wire(np.arange(4, dtype=dtype), bits)
    assert from_wire(data, 4, bits).tolist() == [0, 1, 2, 3]
    for length in (0, bits // 2 - 1, bits // 2 + 1):
        with pytest.raises(ProtocolBroken, match=f"{length} bytes"):
            from_wire((data + data)[:length], 4, bits)


@pytest.mark.parametrize(
    ("bits", "wire"),
    [
        (32, "18000000 f0ffffff ffffff3f 00000080"),
        (48, "180000000000 f0ffffffffff ffffff3f0000 00000080ffff"),
        (64, "1800000000000000 f0ffffffffffffff ffffff3f00000000 00000080ffffffff"),
    ],
)
def test_numbers_on_the_wire_by_hand(bits: Bits, wire: str) -> None:
    # 1.5 and -1 times 2^4; 2^30 - 1 and -(2^31), the last of two owners of 32 bits.
    ring = to_ring(np.array([1.5, -1.0, 2.0**26 - 2.0**-4]), 16.0, 1, bits)
    assert to_wire(ring, bits).hex() == "".join(wire.split()[:3])
    half = to_ring(np.array([-(2.0**26)]), 16.0, 1, bits)
    data = bytes.fromhex(wire.split()[3])
    assert to_wire(half + half, bits) == data
    assert from_ring(from_wire(data, 1, bits), 16.0, bits).tolist() == [-(2.0**27)]


@pytest.mark.parametrize("bits", [32, 48, 64])
def test_a_sum_that_passes_zero_many_times_comes_out_right(bits: Bits) -> None:
    # Modulo 2^w they are 2^w - 3, 5, 2^w - 4, 1; from one to the next the sum wraps around.
    sums = []
    total = to_ring(np.zeros(1), 1.0, 4, bits)
    for number in (-3.0, 5.0, -4.0, 1.0):
        total += to_ring(np.array([number]), 1.0, 4, bits)
        sums.append(from_ring(total, 1.0, bits).item())
    assert sums == [-3.0, 2.0, -2.0, -1.0]


def test_exponents_must_fit_the_shape() -> None:
    three = Scale(kind="rows", exponents=(1, 2, 3))
    ArrayLayout(name="a", shape=(3, 4), scale=three)
    for shape in ((4, 3), (), (4,)):
        with pytest.raises(ValidationError):
            ArrayLayout(name="a", shape=shape, scale=three)
    with pytest.raises(ValidationError):
        ArrayLayout(name="a", shape=(5,), scale=Scale(kind="triangle", exponents=(1, 2)))
    with pytest.raises(ValidationError):
        ArrayLayout(name="a", shape=(1,), scale=Scale(kind="triangle", exponents=(500,)))
    with pytest.raises(ValidationError):
        Scale(kind="uniform", exponents=(513,))
    scale = Scale(kind="uniform", exponents=(0,))
    twice = (ArrayLayout(name="a", shape=(2,), scale=scale),) * 2
    with pytest.raises(ValidationError, match="twice"):
        Layout(bits=64, owners=3, block_elements=1, arrays=twice)


def test_exponents_stay_where_powers_are_exact() -> None:
    sample = Statistic({"a": (2, 1)}, {"a": np.array([[0.0], [1e300]])})
    layout = calibrate(sample, margin_bits=0, floor_bits=2000, owners=3, bits=64, block_elements=9)
    assert layout.arrays[0].scale.exponents == (512, -512)
    assert exponent_for(-2000, 3, 64) == 512
    assert largest_scaled_log2(1, 64) == 62


@pytest.mark.parametrize("margin_bits", [-10_000, 0, 10_000])
def test_no_layout_is_longer_than_its_arrays_allow(margin_bits: int) -> None:
    # The exponents are clipped to the smallest and largest ones: three bytes each, or less.
    schema = {
        "w": (1,),
        "s": (),
        "a" * 90: (500, 2, 7),
        "b": (300,),
        "long:gram": (300 * 301 // 2,),
    }
    sample = Statistic(schema, {name: np.ones(shape) for name, shape in schema.items()})
    layout = calibrate(
        sample, margin_bits=margin_bits, floor_bits=8, owners=3, bits=64, block_elements=1 << 27
    )
    actual = len(canonical.encode(layout.model_dump()))
    assert actual <= longest_layout_bytes(schema)
    # Nor is the bound far off, or it would be none: 45,150 numbers have 300 exponents.
    assert longest_layout_bytes(schema) < 2 * actual + 1000
