"""What a hostile server, with some owners, can compute from all that it was given.

Not a guess: the masks that the opened secrets remove are removed, and what is left is
searched for groups of owners whose masks cancel among themselves.
"""

from collections.abc import Collection

from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import Block
from blindmerge_client.states import Masked
from support.secure_sum import Federation

__all__ = ["known_secrets", "revealed_sums"]


def _senders(federation: Federation, manifest: SumManifest) -> set[frozenset[int]]:
    """Of every block, whose masked numbers arrived."""
    seats: dict[int, set[int]] = {}
    for seat, message in federation.sent:
        if isinstance(message, Block) and message.manifest_hash == manifest.hash:
            seats.setdefault(message.index, set()).add(seat)
    return {frozenset(some) for some in seats.values()}


def known_secrets(
    federation: Federation, manifest: SumManifest, colluders: Collection[int] = ()
) -> tuple[set[int], set[int]]:
    """Whose b, and whose s_sk, can be put together in a run.

    colluders: owners that give the server their keys and all shares they hold.
    """
    holders: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
    for seat, state in federation.openings:
        if state.manifest.hash == manifest.hash and seat not in colluders:
            matrix = federation.masked[manifest.hash, seat].adverts.holders(manifest)
            for dealer in state.sets.u2:
                if matrix[dealer, seat]:
                    kind = dealer not in state.sets.u3
                    holders[kind].setdefault(dealer, set()).add(seat)
    for colluder in colluders:
        masked = federation.masked.get((manifest.hash, colluder))
        for dealer in masked.held if masked else ():
            for each in holders:
                each.setdefault(dealer, set()).add(colluder)
    threshold = manifest.thresholds.threshold
    seeds, masking = (
        {dealer for dealer, seats in each.items() if len(seats) >= threshold} | set(colluders)
        for each in holders
    )
    return seeds, masking


def revealed_sums(
    federation: Federation, manifest: SumManifest, colluders: Collection[int] = ()
) -> list[list[int]]:
    """Sets of honest owners whose exact sum of any block the adversary can compute in a run.

    An owner whose s_sk is known has no pairwise masks left. The others are grouped by the
    masks between them; a group can be read if the b of each member is known, all sent the
    block, and each mask was added by one and subtracted by the other.
    """
    seeds, masking = known_secrets(federation, manifest, colluders)
    groups = set[tuple[int, ...]]()
    for seats in _senders(federation, manifest):
        sent = {seat: federation.masked[manifest.hash, seat] for seat in seats}
        groups |= _readable(sent, seeds, masking, colluders)
    return sorted(map(list, groups))


def _readable(
    sent: dict[int, Masked], seeds: set[int], masking: set[int], colluders: Collection[int]
) -> set[tuple[int, ...]]:
    """Groups whose sum can be read of a block that these owners sent."""
    masks: dict[int, set[int]] = {}
    for seat, state in sent.items():
        matrix = state.adverts.holders(state.manifest)
        masks[seat] = {
            peer
            for peer in state.u2
            if peer != seat
            and (matrix[seat, peer] or matrix[peer, seat])
            and not {seat, peer} & masking
        }
    left, groups = set(sent) - set(colluders), set[tuple[int, ...]]()
    while left:
        group, edge = set[int](), {left.pop()}
        while edge:
            seat = edge.pop()
            group.add(seat)
            near = {peer for peer in left if peer in masks[seat] or seat in masks[peer]}
            left -= near
            edge |= near
        cancels = all(
            peer in group and seat in masks[peer] for seat in group for peer in masks[seat]
        )
        if cancels and group <= seeds:
            groups.add(tuple(sorted(group)))
    return groups
