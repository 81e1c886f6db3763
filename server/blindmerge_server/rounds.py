"""One phase at the server: add what arrives, solve, write the merged block.

No Flower here. Memory holds the sum and one owner's block at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from blindmerge.checkpoint import Checkpoint, CheckpointWriter, Tensors
from blindmerge.errors import PeerInvalid, TooFewOwners
from blindmerge.merge import LayerReport
from blindmerge.plan import Plan
from blindmerge.statistic import Statistic

__all__ = ["MIN_OWNERS", "MergedPhase", "PhaseSum", "solve_phase"]

MIN_OWNERS = 2
"""A "sum" of one owner is that owner's statistic."""


@dataclass(frozen=True, slots=True)
class MergedPhase:
    """The result of a phase: who is in the sum, and the merged tensors as written."""

    block: str
    owners: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    tensors: Tensors


class PhaseSum:
    """The running sum of one phase."""

    def __init__(self, plan: Plan, phase: int) -> None:
        self._block = plan.phases[phase]
        self._schema = plan.method.schema_of(self._block)
        self._total: Statistic | None = None
        self._owners: list[str] = []

    @property
    def owners(self) -> tuple[str, ...]:
        """Who is in the sum, sorted."""
        return tuple(sorted(self._owners))

    def add(self, owner: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds an owner's arrays.

        Raises SchemaMismatch or NotFinite if they are not what the plan says, PeerInvalid if
        the owner is in the sum already; the sum is then as before.
        """
        if owner in self._owners:
            raise PeerInvalid(f"'{owner}' has contributed to this phase already")
        statistic = Statistic(self._schema, arrays)
        self._total = statistic if self._total is None else self._total + statistic
        self._owners.append(owner)

    def total(self) -> Statistic:
        """The sum. Raises TooFewOwners if it is over fewer than MIN_OWNERS owners."""
        if self._total is None or len(self._owners) < MIN_OWNERS:
            raise TooFewOwners(
                f"{len(self._owners)} owner(s) contributed to '{self._block.name}', "
                f"a sum needs {MIN_OWNERS}",
                hint="see why the others are missing, then run the job again",
            )
        return self._total


def solve_phase(
    plan: Plan, phase: int, phase_sum: PhaseSum, base: Checkpoint, writer: CheckpointWriter
) -> MergedPhase:
    """Solves a phase and writes its block.

    Raises TooFewOwners, and NotFinite if the solution does not fit the base's dtypes.
    """
    block = plan.phases[phase]
    solved = plan.method.solve(block, phase_sum.total(), base.read(block.shapes))
    tensors = writer.write(phase, solved.weights)
    return MergedPhase(block.name, phase_sum.owners, solved.layers, tensors)
