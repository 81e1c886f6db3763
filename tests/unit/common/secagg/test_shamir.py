"""Shamir against rational arithmetic, a second library, and its own law."""

import pickle
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.errors import ShareInvalid
from blindmerge.secagg.secret import OsRandomness, Secret
from blindmerge.secagg.shamir import PRIME, SECRET_BYTES, SHARE_BYTES, combine, split
from support.randomness import CounterRandomness


def _is_prime(number: int) -> bool:
    """Miller-Rabin with 40 fixed bases: wrong with probability below 4^-40."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def test_the_modulus_is_the_first_prime_above_2_to_the_256() -> None:
    assert _is_prime(PRIME)
    assert not any(_is_prime(2**256 + step) for step in range(297))


@given(
    secret=st.binary(min_size=32, max_size=32),
    threshold=st.integers(1, 8),
    extra=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_any_threshold_shares_give_the_secret(
    secret: bytes, threshold: int, extra: int, seed: int
) -> None:
    points = range(1, threshold + extra + 1)
    shares = split(Secret(secret), threshold, points, CounterRandomness(seed))
    assert all(len(share) == SHARE_BYTES for share in shares.values())
    for chosen in list(combinations(points, threshold))[:20]:
        some = {point: shares[point] for point in chosen}
        assert combine(some, threshold).reveal() == secret


def test_equals_rational_lagrange_interpolation() -> None:
    # Over the rationals f(0) is a fraction a / b; modulo the prime it is a * b^-1.
    shares = split(Secret(b"\xfe" * 32), 5, (3, 1, 9, 7, 1000), CounterRandomness(1))
    values = {p: int.from_bytes(s.reveal(), "big") for p, s in shares.items()}
    total = Fraction(0)
    for point, value in values.items():
        weight = Fraction(1)
        for other in values.keys() - {point}:
            weight *= Fraction(other, other - point)
        total += value * weight
    at_zero = total.numerator * pow(total.denominator, -1, PRIME) % PRIME
    assert at_zero == int.from_bytes(combine(shares, 5).reveal(), "big")
    assert at_zero.to_bytes(32, "big") == b"\xfe" * 32


def test_shares_lie_on_the_polynomial_of_the_random_bytes() -> None:
    # Coefficients are the 48-byte draws modulo the prime, highest power first.
    draws = CounterRandomness(7).bytes(96)
    high, low = (int.from_bytes(draws[at : at + 48], "big") % PRIME for at in (0, 48))
    secret = int.from_bytes(b"\x01" * 32, "big")
    shares = split(Secret(b"\x01" * 32), 3, (2, 5, 6), CounterRandomness(7))
    for point, share in shares.items():
        expected = (high * point**2 + low * point + secret) % PRIME
        assert int.from_bytes(share.reveal(), "big") == expected


def test_fewer_shares_fit_every_secret() -> None:
    # For any two shares of a threshold of 3 and any secret there is a third share that
    # completes them: two shares say nothing.
    shares = split(Secret(bytes(32)), 3, (1, 2, 3), CounterRandomness(2))
    one, two = (int.from_bytes(shares[point].reveal(), "big") for point in (1, 2))
    for secret in (0, 1, 2**256 - 1):
        # f(3) of the parabola through (0, secret), (1, one), (2, two).
        third = (secret - 3 * one + 3 * two) % PRIME
        forged = {1: shares[1], 2: shares[2], 3: Secret(third.to_bytes(33, "big"))}
        assert int.from_bytes(combine(forged, 3).reveal(), "big") == secret


def test_a_share_that_is_no_residue_names_its_seat() -> None:
    shares = split(Secret(bytes(32)), 2, (1, 2), CounterRandomness(3))
    shares[2] = Secret(PRIME.to_bytes(33, "big"))
    with pytest.raises(ShareInvalid, match="seat 1"):
        combine(shares, 2)


def test_shares_of_something_larger_than_a_secret_are_refused() -> None:
    too_large = Secret((2**256).to_bytes(33, "big"))
    with pytest.raises(ShareInvalid):
        combine({1: too_large}, 1)


def test_secrets_do_not_show() -> None:
    secret = Secret(b"a" * 32)
    assert repr(secret) == str(secret) == f"{secret}" == "<secret 32 bytes>"
    assert secret == Secret(b"a" * 32)
    assert secret != Secret(b"b" * 32)
    assert secret != b"a" * 32
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        hash(secret)


def test_the_operating_system_gives_fresh_bytes() -> None:
    rng = OsRandomness()
    assert len(rng.bytes(SECRET_BYTES)) == SECRET_BYTES
    assert rng.bytes(32) != rng.bytes(32)


def test_impossible_splits_are_our_own_bugs() -> None:
    for threshold, points in ((0, (1,)), (3, (1, 2)), (2, (1, 1)), (1, (0,))):
        with pytest.raises(ValueError, match="points"):
            split(Secret(bytes(32)), threshold, points, CounterRandomness(0))
    with pytest.raises(ValueError, match="32 bytes"):
        split(Secret(bytes(31)), 1, (1,), CounterRandomness(0))
    with pytest.raises(ValueError, match="2 shares"):
        combine({1: Secret(bytes(33))}, 2)
    with pytest.raises(TypeError, match="bytes"):
        Secret("text")  # type: ignore[arg-type]
