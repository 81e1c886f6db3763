"""One block at the server: add what arrives without masks, solve, write the merged block.

No Flower here. Memory holds the sum and one owner's block at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import PeerInvalid, TooFewOwners
from blindmerge.merge import LayerReport
from blindmerge.plan import Plan
from blindmerge.statistic import Statistic

__all__ = ["MIN_OWNERS", "BlockSum", "Total", "solve_block"]

MIN_OWNERS = 2
"""A "sum" of one owner is that owner's statistic."""


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of the owners' statistics of a block, and who is in it."""

    block: int
    owners: tuple[str, ...]
    statistic: Statistic


class BlockSum:
    """The running sum of one block, which shows the server every owner's statistic."""

    def __init__(self, plan: Plan, block: int) -> None:
        self._number = block
        self._block = plan.blocks[block]
        self._schema = plan.method.schema_of(self._block)
        self._sum: Statistic | None = None
        self._owners: list[str] = []

    def add(self, owner: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds an owner's arrays.

        Raises SchemaMismatch or NotFinite if they are not what the plan says, PeerInvalid if
        the owner is in the sum already; the sum is then as before.
        """
        if owner in self._owners:
            raise PeerInvalid(f"'{owner}' has contributed to this block already")
        statistic = Statistic(self._schema, arrays)
        self._sum = statistic if self._sum is None else self._sum + statistic
        self._owners.append(owner)

    def total(self) -> Total:
        """The sum. Raises TooFewOwners if it is over fewer than MIN_OWNERS owners."""
        if self._sum is None or len(self._owners) < MIN_OWNERS:
            raise TooFewOwners(
                f"{len(self._owners)} owner(s) contributed to '{self._block.name}', "
                f"a sum needs {MIN_OWNERS}",
                hint="see why the others are missing, then run the job again",
            )
        return Total(self._number, tuple(sorted(self._owners)), self._sum)


def solve_block(
    plan: Plan,
    total: Total,
    base: Checkpoint,
    writer: CheckpointWriter,
    interim: CheckpointWriter | None = None,
) -> tuple[LayerReport, ...]:
    """Solves a block and writes its merged tensors.

    interim: gets those that later blocks are measured in, of a method that `revises`.
    Raises NotFinite if the solution does not fit the base's dtypes.
    """
    block = plan.blocks[total.block]
    solved = plan.method.solve(block, total.statistic, base.read(block.shapes))
    if solved.interim is not None:
        if interim is None:
            raise ValueError("a method that revises needs a place for what it revises")
        interim.write(total.block, solved.interim)
    writer.write(total.block, solved.weights)
    return solved.layers
