"""Who masks with whom, and who holds whose shares (SPEC §7).

Every owner's two secrets are split among its *holders*, k seats that include its own; any t
of them open one. It shares pairwise masks with everybody whose shares it holds and everybody
who holds its shares. Up to 100 owners all hold all: k = n. Above, an owner's holders are drawn
by a keystream from its own signed nonce, so neither the server nor other owners choose them,
and everybody can draw them again.

Source of the idea: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead", CCS 2020.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from math import comb, log2

import numpy as np
import numpy.typing as npt

from blindmerge.secagg.keys import LABEL_GRAPH, derive
from blindmerge.secagg.masks import apply_masks
from blindmerge.secagg.secret import Secret

__all__ = [
    "COMPLETE_UP_TO",
    "MOST_HOLDERS",
    "Holders",
    "are_regular_parameters",
    "default_colluders",
    "draw_holders",
    "log2_disconnected",
    "quorum",
    "regular_parameters",
]

COMPLETE_UP_TO = 100
"""Largest number of owners of whom all hold shares of all."""

MOST_HOLDERS = 1000
"""Of an owner's shares, in a graph that is not complete."""

_SECURITY_LOG2 = 40  # a federation is unsafe with probability below 2^-40 per attempt
_LIVENESS_LOG2 = 20  # and stops for lack of holders with probability below 2^-20

Holders = npt.NDArray[np.bool_]
"""[n, n]: entry (i, j) says whether j holds shares of i."""


def quorum(owners: int, colluders: int) -> int:
    """Owners that must sign one set of survivors: floor((n + c) / 2) + 1.

    Two quorums have more than c owners in common, so one honest owner, which signs once.
    """
    return (owners + colluders) // 2 + 1


def default_colluders(owners: int) -> int:
    """Owners that may help the server, unless plan and owners say otherwise: a third of a complete
    graph, at least one; a tenth above.

    >>> [default_colluders(n) for n in (3, 5, 10, 20, 50, 100, 1000)]
    [1, 1, 3, 6, 16, 33, 100]
    """
    return owners // 10 if owners > COMPLETE_UP_TO else max(1, (owners - 1) // 3)


@lru_cache(maxsize=16)
def regular_parameters(owners: int, colluders: int, dropouts: int) -> tuple[int, int]:
    """The smallest k, and its smallest t, that `are_regular_parameters`.

    Raises ValueError if nothing short of the complete graph, or of a thousand holders, does.

    >>> regular_parameters(300, 30, 30), regular_parameters(1000, 100, 100)
    ((66, 46), (95, 66))
    """
    most = min(owners - 1, MOST_HOLDERS)
    # The most first: where they do not do, neither do fewer, and the search would be long.
    if _with_holders(owners, colluders, dropouts, most) is not None:
        for holders in range(3, most + 1):
            threshold = _with_holders(owners, colluders, dropouts, holders)
            if threshold is not None:
                return holders, threshold
    raise ValueError("so many colluders and drop-outs need a complete graph")


def _with_holders(owners: int, colluders: int, dropouts: int, holders: int) -> int | None:
    """The smallest t for k holders, if any does: a larger one loses more."""

    def is_safe(threshold: int) -> bool:
        return _is_safe(owners, colluders, holders, threshold)

    thresholds = range(holders // 2 + 1, holders + 1)
    least = thresholds[0] + bisect_left(thresholds, True, key=is_safe)
    regular = are_regular_parameters(owners, colluders, dropouts, holders, least)
    return least if regular else None


@lru_cache(maxsize=16)
def are_regular_parameters(
    owners: int, colluders: int, dropouts: int, holders: int, threshold: int
) -> bool:
    """Whether k holders and t shares do for `colluders` corrupt, `dropouts` lost owners (SPEC §7).

    Of the k holders of an owner, itself and k - 1 drawn from the others, X collude and D are
    lost; both are hypergeometric. Required, with a union bound over all owners:
        n P[X >= 2t - k] <= 2^-40     at most one of its two secrets can be opened
        n P[D > k - t]   <= 2^-20     enough holders are left
    and survivors that cannot be split (`log2_disconnected`).
    Not `regular_parameters(...) == (k, t)`: no manifest can make this check long, but for some
    numbers the search takes hours.
    """
    if not 3 <= holders <= min(owners - 1, MOST_HOLDERS):
        return False
    if not holders // 2 < threshold <= holders or not _is_safe(
        owners, colluders, holders, threshold
    ):
        return False
    stuck = _tail(owners - 1, dropouts, holders - 1, holders - threshold + 1)
    if owners * stuck << _LIVENESS_LOG2 > comb(owners - 1, holders - 1):
        return False
    return log2_disconnected(owners, colluders, holders, threshold) <= -_SECURITY_LOG2


def _is_safe(owners: int, colluders: int, holders: int, threshold: int) -> bool:
    """n P[X >= 2t - k] <= 2^-40."""
    unsafe = _tail(owners - 1, colluders, holders - 1, 2 * threshold - holders)
    return owners * unsafe << _SECURITY_LOG2 <= comb(owners - 1, holders - 1)


def _tail(population: int, marked: int, draws: int, least: int) -> int:
    """How many of the comb(population, draws) draws have at least `least` marked."""
    return sum(
        comb(marked, hits) * comb(population - marked, draws - hits)
        for hits in range(max(least, 0), min(marked, draws) + 1)
    )


def log2_disconnected(owners: int, colluders: int, holders: int, threshold: int) -> float:
    """log2 of a bound on the probability that opened survivors can be split (SPEC §7).

    The event: honest survivors fall into two parts without a mask between them, whichever
    quorum a hostile server chooses. Every survivor whose b is opened has at least k - t
    honest holders besides itself that survive, so they are in its part; and the larger part
    are owners that drew nobody of the smaller. A union bound over both parts:
        sum over s of C(h, s) P[k - t of k - 1 draws in the part]^s C(h - s, l) P[none]^l
    with h honest owners, s in the smaller part and l in the larger.
    """
    honest, inside = owners - colluders, holders - threshold
    fewest = quorum(owners, colluders) - colluders  # honest survivors
    log2_terms = []
    for part in range(inside + 1, honest // 2 + 1):
        others = max(part, fewest - part)
        if others > honest - part or holders > owners - part:
            continue  # there is no such split
        missed = _log2_comb(owners - 1 - part, holders - 1) - _log2_comb(owners - 1, holders - 1)
        drawn = _log2_comb(holders - 1, inside)
        if inside > 0:
            drawn += inside * log2((part - 1) / (owners - 1))
        choices = _log2_comb(honest, part) + _log2_comb(honest - part, others)
        log2_terms.append(choices + part * min(0.0, drawn) + others * missed)
    most = max(log2_terms, default=-math.inf)
    return most + log2(len(log2_terms)) if log2_terms else most


def _log2_comb(items: int, chosen: int) -> float:
    """log2 of a binomial coefficient."""
    factorials = math.lgamma(chosen + 1) + math.lgamma(items - chosen + 1)
    return (math.lgamma(items + 1) - factorials) / math.log(2)


def draw_holders(
    manifest_hash: bytes, nonces: Mapping[int, bytes], owners: int, holders: int
) -> Holders:
    """Who holds the shares of each seat in `nonces`; other rows are empty."""
    matrix = np.zeros((owners, owners), dtype=np.bool_)
    for seat, nonce in sorted(nonces.items()):
        if holders == owners:
            matrix[seat] = True
            continue
        key = derive(Secret(nonce), LABEL_GRAPH, manifest_hash, seat)
        rank = np.zeros(owners, dtype=np.uint64)
        apply_masks(rank, [key], [], "aes-256-ctr")
        order = np.argsort(rank, kind="stable")
        matrix[seat, order[order != seat][: holders - 1]] = True
        matrix[seat, seat] = True
    matrix.flags.writeable = False
    return matrix
