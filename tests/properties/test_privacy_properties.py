"""Whatever a unit holds, it moves the release by at most the clip (PROOF §3.3, §4.3)."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from blindmerge.privacy.mechanism import GroupTerms, NoiseTerms, clipped
from blindmerge.statistic import Array

WIDTHS = {"a": 2, "b": 3}
NUMBERS = st.floats(-(2.0**100), 2.0**100) | st.floats(-4, 4)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[NoiseTerms, dict[str, Array]]:
    weights = st.floats(2.0**-20, 2.0**20)
    groups = {name: GroupTerms(width, draw(weights)) for name, width in WIDTHS.items()}
    clip, bits = draw(st.floats(2.0**-30, 2.0**30)), draw(st.sampled_from([2, 3, 8, 20]))
    rows = draw(st.integers(0, 4))
    unit = {
        name: draw(arrays(np.float64, (rows, w), elements=NUMBERS)) for name, w in WIDTHS.items()
    }
    return NoiseTerms(groups, clip, 1.0, most_rows=4, bits=bits), unit


@settings(max_examples=150, deadline=None)
@given(_cases())
def test_no_unit_moves_the_release_by_more_than_the_clip(
    case: tuple[NoiseTerms, dict[str, Array]],
) -> None:
    terms, unit = case
    moved = Fraction(0)
    for name, rows in clipped(terms, unit).items():
        assert np.abs(rows).max(initial=0) <= terms.largest
        integers = rows.astype(object)
        gram = integers.T @ integers
        for i in range(WIDTHS[name]):
            for j in range(i + 1):
                variance = terms.variance(name) / (1 if i == j else 2)
                moved += Fraction(int(gram[i, j]) ** 2) / variance
    assert moved <= 1  # 2 rho with z = 1


@settings(max_examples=50, deadline=None)
@given(_cases())
def test_the_integers_of_a_unit_do_not_depend_on_the_sign(
    case: tuple[NoiseTerms, dict[str, Array]],
) -> None:
    terms, unit = case
    flipped = {name: -rows for name, rows in unit.items()}
    for name, rows in clipped(terms, flipped).items():
        np.testing.assert_array_equal(-rows, clipped(terms, unit)[name])
