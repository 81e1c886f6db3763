"""Encode, add, decode stays within the derived bound of the exact sum."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.encoding import (
    Bits,
    Layout,
    Scale,
    calibrate,
    error_bound,
    fits,
    from_ring,
    from_wire,
    largest_scaled_log2,
    to_ring,
    to_wire,
)
from blindmerge.errors import Overflow
from blindmerge.statistic import Array, Statistic

BITS = st.sampled_from((32, 48, 64))
SCHEMA = {"vector": (3,), "rows": (3, 2), "cube": (2, 2, 2), "x:gram": (6,)}
# So far from the ends of float64 that no exponent is clipped.
SIZES = st.one_of(st.just(0.0), st.floats(2.0**-150, 2.0**150))
UNITS = st.floats(-1.0, 1.0)


@given(bits=BITS, owners=st.integers(1, 1000))
def test_the_largest_power_of_two_fits_and_the_next_does_not(bits: Bits, owners: int) -> None:
    largest = largest_scaled_log2(owners, bits)
    assert owners * (2**largest + 1) < 2 ** (bits - 1)
    assert owners * (2 ** (largest + 1) + 1) >= 2 ** (bits - 1)
    assert fits(2.0**largest, owners, bits)
    assert not fits(2.0 ** (largest + 1), owners, bits)


@given(
    bits=BITS,
    exponent=st.integers(-200, 200),
    owners=st.integers(1, 12),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_sum_over_the_ring_is_within_the_bound(
    bits: Bits, exponent: int, owners: int, data: st.DataObject
) -> None:
    limit = 2.0 ** (largest_scaled_log2(owners, bits) - exponent)
    numbers = st.floats(-limit, limit, allow_nan=False, allow_subnormal=False)
    values = data.draw(
        st.lists(
            st.lists(numbers, min_size=3, max_size=3),
            min_size=owners,
            max_size=owners,
        )
    )
    factor = 2.0**exponent
    rings = [to_ring(np.array(row), factor, owners, bits) for row in values]
    total = np.zeros_like(rings[0])
    for ring in rings:
        total += from_wire(to_wire(ring, bits), 3, bits)
    decoded = from_ring(total, factor, bits)
    bound = error_bound(decoded, factor, owners)
    for column in range(3):
        exact = sum((Fraction(row[column]) for row in values), Fraction(0))
        assert abs(Fraction(float(decoded[column])) - exact) <= Fraction(float(bound[column]))


@given(bits=BITS, owners=st.integers(1, 50), over=st.floats(1.0 + 2.0**-40, 1e9))
def test_what_does_not_fit_is_refused(bits: Bits, owners: int, over: float) -> None:
    # 2^(bits-1) / owners is beyond every number that fits, also after rounding to float64.
    value = np.array([-(2.0 ** (bits - 1)) / owners * over])
    with pytest.raises(Overflow):
        to_ring(value, 1.0, owners, bits)


@given(width=st.integers(1, 12), start=st.integers(0, 77), size=st.integers(1, 78))
def test_triangles_have_the_exponents_of_row_and_column(width: int, start: int, size: int) -> None:
    exponents = [3 * index - 5 for index in range(width)]
    numbers = width * (width + 1) // 2
    start, stop = min(start, numbers - 1), min(start + size, numbers)
    if start >= stop:
        start = stop - 1
    layout = Layout.model_validate(
        {
            "bits": 64,
            "owners": 2,
            "block_elements": 1,
            "arrays": (
                {
                    "name": "g:gram",
                    "shape": (numbers,),
                    "scale": Scale(kind="triangle", exponents=tuple(exponents)),
                },
            ),
        }
    )
    columnwise = [
        2.0 ** (exponents[row] + exponents[column])
        for column in range(width)
        for row in range(column + 1)
    ]
    got = np.asarray(layout.arrays[0].factors(start, stop))
    assert got.tolist() == columnwise[start:stop]


@given(
    bits=BITS,
    owners=st.integers(1, 5),
    margin_bits=st.integers(0, 12),
    floor_bits=st.integers(0, 60),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_within_the_margin_of_a_sample_nothing_overflows_and_the_bound_holds(
    bits: Bits, owners: int, margin_bits: int, floor_bits: int, data: st.DataObject
) -> None:
    sample = Statistic(SCHEMA, {name: _sample(data, name) for name in SCHEMA})
    layout = calibrate(
        sample,
        margin_bits=margin_bits,
        floor_bits=floor_bits,
        owners=owners,
        bits=bits,
        block_elements=100,
    )
    largest = {name: _largest(sample, name, margin_bits, floor_bits) for name in SCHEMA}
    statistics = []
    for _ in range(owners):
        units = {name: _numbers(data, UNITS, shape) for name, shape in SCHEMA.items()}
        arrays = {name: units[name] * largest[name] for name in SCHEMA}
        statistics.append(Statistic(SCHEMA, arrays))
    ring = layout.zeros(0)
    for statistic in statistics:
        ring += layout.encode(statistic, 0)
    total = layout.empty()
    layout.decode(ring, 0, total)
    for array in layout.arrays:
        flat = total[array.name].reshape(-1)
        factors = np.broadcast_to(np.asarray(array.factors(0, array.size)), flat.shape)
        bound = error_bound(flat, factors, owners)
        for place, decoded in enumerate(flat.tolist()):
            terms = [Fraction(each[array.name].flat[place]) for each in statistics]
            assert abs(Fraction(decoded) - sum(terms)) <= Fraction(float(bound[place]))


def _numbers(
    data: st.DataObject, numbers: st.SearchStrategy[float], shape: tuple[int, ...]
) -> Array:
    size = int(np.prod(shape))
    return np.array(data.draw(st.lists(numbers, min_size=size, max_size=size))).reshape(shape)


def _sample(data: st.DataObject, name: str) -> Array:
    """Any numbers; of a Gram matrix any diagonal, and as much beside it as there may be."""
    if name != "x:gram":
        return _numbers(data, SIZES, SCHEMA[name]) * np.sign(_numbers(data, UNITS, SCHEMA[name]))
    width = _numbers(data, SIZES, (3,))
    return np.array([np.sqrt(width[i] * width[j]) for j in range(3) for i in range(j + 1)])


def _largest(sample: Statistic, name: str, margin_bits: int, floor_bits: int) -> Array:
    """What every number of an owner may be, by the words of `calibrate`."""
    numbers = np.abs(sample[name])
    gram = name == "x:gram"
    by_row = numbers[[0, 2, 5]] if gram else numbers.reshape(len(numbers), -1).max(axis=1)
    if numbers.ndim == 1 and not gram:
        by_row = np.full(len(numbers), numbers.max())
    if not by_row.any():
        by_row = np.ones(len(by_row))
    bounds = np.maximum(by_row, by_row.max() * 2.0**-floor_bits) * 2.0**margin_bits
    if gram:  # |G_ij| <= sqrt(G_ii G_jj), and below it after the roots were rounded
        roots = np.sqrt(bounds) * (1 - 2.0**-50)
        return np.array([roots[i] * roots[j] for j in range(3) for i in range(j + 1)])
    return np.broadcast_to(bounds.reshape(-1, *[1] * (numbers.ndim - 1)), numbers.shape)
