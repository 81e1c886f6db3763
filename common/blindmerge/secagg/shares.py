"""Commitments to dealt shares, and holders of survivors (SPEC §6, steps R1, R3 and R4)."""

import hashlib
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from blindmerge.secagg.graph import Holders
from blindmerge.secagg.manifest import Thresholds
from blindmerge.secagg.secret import Secret

__all__ = ["commit_to_share", "commit_to_shares", "place_of_holder", "survivors_without_holders"]

_LABELS = (b"blindmerge/1 share of b ", b"blindmerge/1 share of s ")


def commit_to_share(
    share: Secret, which: int, manifest_hash: bytes, dealer: int, holder: int
) -> bytes:
    """SHA-256 of a share; which: 0 for b, 1 for s_sk.

    Hiding because a share is uniform among 2^256 values to whoever lacks it, and binding;
    every part but the label has a fixed length.
    """
    seats = dealer.to_bytes(4, "big") + holder.to_bytes(4, "big")
    return hashlib.sha256(_LABELS[which] + manifest_hash + seats + share.reveal()).digest()


def commit_to_shares(
    pair: tuple[Secret, Secret], manifest_hash: bytes, dealer: int, holder: int
) -> bytes:
    """Both commitments to what `dealer` gives `holder`."""
    return b"".join(
        commit_to_share(share, which, manifest_hash, dealer, holder)
        for which, share in enumerate(pair)
    )


def place_of_holder(matrix: Holders, u1: Sequence[int], dealer: int, holder: int) -> int:
    """How many holders in U1 of the shares of `dealer` sit before `holder`: where its part
    stands in a deal.
    """
    before = np.array(u1[: bisect_left(u1, holder)], dtype=np.intp)
    return int(np.count_nonzero(matrix[dealer, before]))


def survivors_without_holders(
    matrix: Holders, survivors: Sequence[int], thresholds: Thresholds
) -> tuple[int, ...]:
    """Survivors fewer than t of whose holders survive."""
    seats = np.array(survivors, dtype=np.intp)
    held = matrix[np.ix_(seats, seats)].sum(axis=1)
    return tuple(seats[held < thresholds.threshold].tolist())
