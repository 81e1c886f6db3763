"""Shamir's secret sharing over the integers modulo a prime (SPEC §5).

Source: Shamir, "How to share a secret", CACM 1979. Any `threshold` shares give the secret
back, fewer say nothing about it. A share is the value of the polynomial at a point that both
sides know (a seat + 1), so it travels without it.

The prime is just above 2^256: every 32 secret bytes are a residue. Shares are not
authenticated here; SPEC §6 step R1 says how a bad share is found.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

from blindmerge.errors import ShareInvalid
from blindmerge.secagg.secret import Randomness, Secret

__all__ = ["PRIME", "SECRET_BYTES", "SHARE_BYTES", "combine", "split"]

PRIME = 2**256 + 297
"""The smallest prime above 2^256."""

SECRET_BYTES = 32
SHARE_BYTES = 33

# Modulo PRIME, 48 random bytes are within 2^-127 of uniform (statistical distance).
_COEFFICIENT_BYTES = 48


def split(
    secret: Secret, threshold: int, points: Sequence[int], rng: Randomness
) -> dict[int, Secret]:
    """One share of `secret` for every point.

    threshold: how many shares give the secret back, 1 <= threshold <= len(points).
    points: different and positive; small ones make it fast.
    """
    if not 1 <= threshold <= len(points) == len(set(points)) or min(points) < 1:
        raise ValueError("as many different positive points as the threshold are needed")
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {SECRET_BYTES} bytes is needed")
    random = rng.bytes(_COEFFICIENT_BYTES * (threshold - 1))
    coefficients = [
        int.from_bytes(random[at : at + _COEFFICIENT_BYTES], "big") % PRIME
        for at in range(0, len(random), _COEFFICIENT_BYTES)
    ]
    coefficients.append(int.from_bytes(secret.reveal(), "big"))
    shares = {}
    for point in points:
        share = 0
        # Horner without reduction: points are small, so one reduction at the end is cheaper.
        for coefficient in coefficients:
            share = share * point + coefficient
        shares[point] = Secret((share % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, Secret], threshold: int) -> Secret:
    """The secret of the first `threshold` shares by point.

    Raises ShareInvalid if a share is no residue, or if what they give is no 32 bytes, which
    happens only to shares that were not split from one secret with this threshold.
    """
    if len(shares) < threshold:
        raise ValueError(f"{threshold} shares are needed, {len(shares)} are there")
    points = tuple(sorted(shares)[:threshold])
    total = 0
    for point, weight in zip(points, _weights_at_zero(points), strict=True):
        share = int.from_bytes(shares[point].reveal(), "big")
        if share >= PRIME:
            raise ShareInvalid(f"the share of seat {point - 1} is not below the prime")
        total += share * weight
    total %= PRIME
    if total >= 1 << 8 * SECRET_BYTES:
        raise ShareInvalid("shares do not belong to one secret")
    return Secret(total.to_bytes(SECRET_BYTES, "big"))


@lru_cache(maxsize=256)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights: f(0) = sum of f(point) * weight. Depends on public points only.

    weight = product of all points / (point * product of (other - point)); one inversion
    serves all of them (Montgomery's trick): `before` holds the running products.
    """
    denominators = [
        point * math.prod(other - point for other in points if other != point) % PRIME
        for point in points
    ]
    before = list(accumulate(denominators, _times, initial=1))
    inverse = math.prod(points) * pow(before[-1], -1, PRIME) % PRIME
    weights = []
    for index in reversed(range(len(points))):
        weights.append(inverse * before[index] % PRIME)
        inverse = inverse * denominators[index] % PRIME
    return tuple(reversed(weights))


def _times(left: int, right: int) -> int:
    return left * right % PRIME
