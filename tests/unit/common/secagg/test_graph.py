"""The graph: parameters against direct probabilities, draws that nobody steers."""

import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from blindmerge.secagg.graph import (
    COMPLETE_UP_TO,
    are_regular_parameters,
    default_colluders,
    draw_holders,
    log2_disconnected,
    quorum,
    regular_parameters,
)
from support.randomness import CounterRandomness


def test_thresholds_of_the_complete_graph() -> None:
    table = {3: (1, 3), 5: (1, 4), 10: (3, 7), 20: (6, 14), 50: (16, 34), 100: (33, 67)}
    for owners, (colluders, threshold) in table.items():
        assert default_colluders(owners) == colluders
        assert quorum(owners, colluders) == threshold


@given(owners=st.integers(3, 5000), data=st.data())
def test_two_quorums_share_an_honest_owner(owners: int, data: st.DataObject) -> None:
    colluders = data.draw(st.integers(1, owners - 2))
    assert 2 * quorum(owners, colluders) - owners >= colluders + 1


@pytest.mark.parametrize(
    ("owners", "expected"), [(101, (31, 21)), (300, (66, 46)), (1000, (95, 66)), (10000, (118, 82))]
)
def test_parameters_meet_the_conditions_and_one_holder_less_does_not(
    owners: int, expected: tuple[int, int]
) -> None:
    tenth = owners // 10
    assert regular_parameters(owners, tenth, tenth) == expected

    def is_enough(holders: int, threshold: int) -> bool:
        # scipy's floating-point survival function, for the exact sums of the code.
        lost = hypergeom(owners - 1, tenth, holders - 1)
        return bool(
            owners * lost.sf(2 * threshold - holders - 1) <= 2.0**-40
            and owners * lost.sf(holders - threshold) <= 2.0**-20
        )

    holders, threshold = expected
    assert is_enough(holders, threshold)
    assert not any(is_enough(holders - 1, t) for t in range(holders // 2 + 1, holders))


@pytest.mark.parametrize("wanted", [(120, 60, 30), (2000, 900, 500)])
def test_too_many_enemies_need_everybody(wanted: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="complete"):
        regular_parameters(*wanted)


def test_the_check_agrees_with_scipy_for_every_choice() -> None:
    owners, colluders, dropouts = 150, 15, 12
    corrupt, lost = (hypergeom(owners - 1, marked, 44) for marked in (colluders, dropouts))
    accepted = [
        threshold
        for threshold in range(1, 46)
        if are_regular_parameters(owners, colluders, dropouts, 45, threshold)
    ]
    assert accepted == [
        threshold
        for threshold in range(23, 46)
        if owners * corrupt.sf(2 * threshold - 46) <= 2.0**-40
        and owners * lost.sf(45 - threshold) <= 2.0**-20
    ]
    assert len(accepted) > 1


def test_survivors_cannot_be_split_in_the_offered_graphs() -> None:
    for owners in (COMPLETE_UP_TO + 1, 300, 1000, 10000):
        tenth = owners // 10
        holders, threshold = regular_parameters(owners, tenth, tenth)
        assert log2_disconnected(owners, tenth, holders, threshold) < -40
    # The bound is not idle: two holders among a thousand do leave parts without masks.
    assert log2_disconnected(1000, 100, 2, 2) > 0


def test_a_term_of_the_bound_is_the_probability_it_says() -> None:
    # With n = 8, c = 2, k = 3, t = 1 the smaller part has 3 members and the other 3: each of
    # the first draws both others (at most 2/7 squared), each of the second none of the three.
    missed = Fraction(comb(4, 2), comb(7, 2))
    expected = comb(6, 3) * Fraction(2, 7) ** (2 * 3) * comb(3, 3) * missed**3
    assert 2.0 ** log2_disconnected(8, 2, 3, 1) == pytest.approx(float(expected), rel=1e-10)


def test_a_graph_that_cannot_be_split_has_no_terms() -> None:
    assert log2_disconnected(5, 1, 5, 2) == -math.inf


def test_everybody_holds_all_shares_in_a_complete_graph() -> None:
    nonces = {seat: bytes([seat]) * 32 for seat in (0, 2, 3)}
    matrix = draw_holders(b"h" * 32, nonces, 4, 4)
    assert matrix[[0, 2, 3]].all()
    assert not matrix[1].any()


def test_draws_are_regular_and_depend_on_the_own_nonce_only() -> None:
    rng = CounterRandomness(0)
    nonces = {seat: rng.bytes(32) for seat in range(150)}
    matrix = draw_holders(b"h" * 32, nonces, 150, 31)
    assert (matrix.sum(axis=1) == 31).all()
    assert matrix.diagonal().all()
    # Another nonce of seat 7, as a colluder would try: no other row moves.
    changed = draw_holders(b"h" * 32, nonces | {7: rng.bytes(32)}, 150, 31)
    rows = np.arange(150) != 7
    assert (changed[rows] == matrix[rows]).all()
    assert (changed[7] != matrix[7]).any()
    # Another manifest: other holders for all.
    other = draw_holders(b"i" * 32, nonces, 150, 31)
    assert (other != matrix).any(axis=1).all()


def test_draws_are_uniform_over_the_other_seats() -> None:
    rng = CounterRandomness(1)
    counts = np.zeros(101)
    runs = 600
    for _ in range(runs):
        counts += draw_holders(b"h" * 32, {0: rng.bytes(32)}, 101, 31)[0]
    assert counts[0] == runs
    # Binomial(600, 0.3): mean 180, deviation 11.2; six deviations over 100 seats fail by
    # chance less than once in 10^6 seeds, and the seed is fixed.
    assert np.abs(counts[1:] - 0.3 * runs).max() < 6 * (runs * 0.3 * 0.7) ** 0.5
