"""Simple average: W_0 + mean of the owners' deltas (McMahan et al. 2017, one round).

The mean of deltas equals the mean of weights, with smaller numbers to send and to round.
"""

from typing import Literal

import numpy as np

from blindmerge.manifest import Block
from blindmerge.merge.method import (
    BlockEvidence,
    Options,
    Solved,
    Weighting,
    Weights,
    deltas,
    total_weight,
)
from blindmerge.statistic import Array, Schema, Statistic

__all__ = ["Average"]


class Average(Options):
    """W* = W_0 + sum_k w_k D_k / sum_k w_k."""

    name: Literal["average"] = "average"
    weighting: Weighting = "equal"

    def schema_of(self, block: Block) -> Schema:
        """`weight` [1], and `<tensor>:delta` for every tensor."""
        return {
            "weight": (1,),
            **{f"{name}:delta": shape for name, shape in block.shapes.items()},
        }

    def contribution(self, block: Block, evidence: BlockEvidence) -> Statistic:
        """The weighted deltas and the weight."""
        weight = evidence.weight(self.weighting)
        arrays: dict[str, Array] = {"weight": np.array([weight])}
        for name, delta in deltas(block, evidence).items():
            arrays[f"{name}:delta"] = weight * delta
        return Statistic(self.schema_of(block), arrays)

    def solve(self, block: Block, total: Statistic, base: Weights) -> Solved:
        """Divides by the summed weight."""
        weight = total_weight(total)
        return Solved({name: base[name] + total[f"{name}:delta"] / weight for name in block.shapes})
