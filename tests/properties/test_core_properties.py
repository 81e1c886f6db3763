"""Properties of packed triangles and of plans."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from blindmerge.merge import METHODS
from blindmerge.plan import Plan
from blindmerge.statistic import Array, pack_symmetric, packed_size, unpack_symmetric
from support.plans import make_plan

_WIDTHS = st.integers(1, 12)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(_WIDTHS.flatmap(lambda width: arrays(np.float64, packed_size(width), elements=_FINITE)))
def test_unpacked_triangle_is_symmetric_and_packs_again(packed: Array) -> None:
    width = int(np.sqrt(2 * packed.size))
    matrix = unpack_symmetric(packed, width)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(pack_symmetric(matrix), packed)


@given(
    _WIDTHS.flatmap(
        lambda width: arrays(np.float64, (2, width, width), elements=st.floats(-1e9, 1e9))
    )
)
def test_packing_is_linear(pair: Array) -> None:
    first, second = pair + pair.transpose(0, 2, 1)
    np.testing.assert_array_equal(
        pack_symmetric(first + second), pack_symmetric(first) + pack_symmetric(second)
    )


_PLANS = st.builds(
    make_plan,
    job=st.from_regex(r"[a-z0-9][a-z0-9-]{0,63}", fullmatch=True),
    base=st.binary(min_size=32, max_size=32).map(bytes.hex),
    labels=st.lists(st.text(max_size=8), min_size=2, max_size=5, unique=True).map(tuple),
    method=st.sampled_from([{"name": name} for name in METHODS])
    | st.builds(lambda ridge: {"name": "regmean", "ridge": ridge}, st.floats(0, 1e6)),
    examples=st.integers(1, 2**64 - 1),
    max_length=st.integers(1, 2**64 - 1),
)


@settings(max_examples=50, deadline=None)
@given(_PLANS)
def test_plan_round_trip(plan: Plan) -> None:
    decoded = Plan.decode(plan.encode())
    assert decoded == plan
    assert decoded.sha256 == plan.sha256


@settings(max_examples=50, deadline=None)
@given(_PLANS, _PLANS)
def test_plans_are_equal_if_their_hashes_are(first: Plan, second: Plan) -> None:
    assert (first == second) == (first.sha256 == second.sha256)
