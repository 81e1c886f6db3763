"""The exchanges of a job: what is asked of all owners at once, in order.

A plan decides them. Under masks the five rounds of the secure sum (secagg/SPEC.md §6) take one
exchange each, but masked input one for every block; and the first two rounds of a later sum
ride on the last two of the sum before (§8).
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, groupby

from blindmerge.plan import Plan
from blindmerge.statistic import size_bytes

__all__ = ["Exchange", "Kind", "exchanges", "in_words"]

_DELIVERY_BYTES = 256 << 20  # merged tensors in one message, more or less


class Kind(StrEnum):
    """What owners are asked for; the rounds of SPEC §6, one exchange without masks, delivery."""

    ADVERTISE = "R0 advertise"
    SHARE = "R1 share"
    MASKED_INPUT = "R2 masked input"
    CONSISTENCY = "R3 consistency"
    UNMASK = "R4 unmask"
    STATISTIC = "statistic"
    DELIVERY = "delivery"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request to every owner, and its answers.

    phase: number of the sum.   block: whose input is asked for.
    deliver: blocks whose merged tensors go with the request.
    """

    kind: Kind
    phase: int
    block: int | None = None
    deliver: tuple[int, ...] = ()


def exchanges(plan: Plan) -> tuple[tuple[Exchange, ...], tuple[int, ...]]:
    """All exchanges, and the blocks that are delivered with the request to evaluate."""
    masked = plan.masks != "off"
    steps = [Exchange(Kind.ADVERTISE, 0), Exchange(Kind.SHARE, 0)] if masked else []
    ask = Kind.MASKED_INPUT if masked else Kind.STATISTIC
    before: tuple[int, ...] = ()
    for phase, blocks in enumerate(plan.phases):
        for place, block in enumerate(blocks):
            steps.append(Exchange(ask, phase, block, before if place == 0 else ()))
        if masked:
            steps += [Exchange(Kind.CONSISTENCY, phase), Exchange(Kind.UNMASK, phase)]
        before = blocks
    if plan.method.revises:
        before = tuple(range(len(plan.blocks)))
    *portions, last = _portions(plan, before)
    steps += [Exchange(Kind.DELIVERY, len(plan.phases) - 1, None, each) for each in portions]
    return tuple(steps), last


def in_words(plan: Plan, exchange: Exchange) -> str:
    """What owners are asked for, for a person."""
    if exchange.block is not None:
        return f"{exchange.kind}: {plan.blocks[exchange.block].name}"
    return f"{exchange.kind} {exchange.phase + 1}" if exchange.phase else str(exchange.kind)


def _portions(plan: Plan, blocks: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Blocks whose tensors go into one message each."""
    sizes = [size_bytes(plan.blocks[block].shapes) // 2 for block in blocks]  # as float32
    ends = accumulate(sizes)
    numbered = [(end // _DELIVERY_BYTES, block) for end, block in zip(ends, blocks, strict=True)]
    return [tuple(b for _, b in group) for _, group in groupby(numbered, key=lambda pair: pair[0])]
