"""TIES: trim, elect sign, merge the agreeing side (Yadav et al., NeurIPS 2023).

Every step is a sum over owners, if the positive and the negative entries are sent apart:
the elected sign is the sign of the total, the merged entry the mean over its side. A total
of zero elects no side (the paper's sgn(0) = 0), and the entry stays at the base.

Trimming is per tensor, not over the whole model as in the paper, so that a block can be
sent before the next is read.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from blindmerge.manifest import Block
from blindmerge.merge.method import BlockEvidence, Options, Solved, Weights, deltas
from blindmerge.statistic import Array, Schema, Statistic

__all__ = ["Ties"]

_KINDS = ("positive", "negative", "positive-count", "negative-count")


class Ties(Options):
    """density: part of each tensor's entries that is kept, the largest in magnitude
    (the paper's k).   scale: the paper's lambda.
    """

    name: Literal["ties"] = "ties"
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def schema_of(self, block: Block) -> Schema:
        """For every tensor the sums and counts of its positive and negative entries."""
        return {f"{name}:{kind}": shape for name, shape in block.shapes.items() for kind in _KINDS}

    def contribution(self, block: Block, evidence: BlockEvidence) -> Statistic:
        """The trimmed deltas, split by sign."""
        arrays: dict[str, Array] = {}
        for name, delta in deltas(block, evidence).items():
            trimmed = _trim(delta, self.density)
            arrays[f"{name}:positive"] = np.maximum(trimmed, 0.0)
            arrays[f"{name}:negative"] = np.minimum(trimmed, 0.0)
            arrays[f"{name}:positive-count"] = (trimmed > 0).astype(np.float64)
            arrays[f"{name}:negative-count"] = (trimmed < 0).astype(np.float64)
        return Statistic(self.schema_of(block), arrays)

    def solve(self, block: Block, total: Statistic, base: Weights) -> Solved:
        """Elects the sign of the total and takes the mean of that side."""
        weights = {}
        for name in block.shapes:
            positive, negative = total[f"{name}:positive"], total[f"{name}:negative"]
            elected = np.sign(positive + negative)
            side = np.where(elected > 0, positive, negative)
            count = np.where(elected > 0, *(total[f"{name}:{kind}"] for kind in _KINDS[2:]))
            mean = side / np.maximum(count, 1.0)
            weights[name] = base[name] + self.scale * np.abs(elected) * mean
        return Solved(weights)


def _trim(delta: Array, density: float) -> Array:
    """`delta` with all but its `density` largest magnitudes set to zero; ties are kept."""
    keep = max(1, round(density * delta.size))
    magnitude = np.abs(delta)
    smallest = np.partition(magnitude, delta.size - keep, axis=None)[delta.size - keep]
    # Not `magnitude >= smallest`: it would drop a NaN, which the Statistic must refuse.
    return np.where(magnitude < smallest, 0.0, delta)
