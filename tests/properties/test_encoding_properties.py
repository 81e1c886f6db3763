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
    error_bound,
    fits,
    from_ring,
    from_wire,
    largest_scaled_log2,
    to_ring,
    to_wire,
)
from blindmerge.errors import Overflow

BITS = st.sampled_from((48, 64))


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
    total = np.zeros(3, dtype=np.uint64)
    for row in values:
        ring = to_ring(np.array(row), factor, owners, bits)
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
