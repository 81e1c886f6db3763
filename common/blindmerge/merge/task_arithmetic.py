"""Task arithmetic: W_0 + lambda * sum of the owners' deltas (Ilharco et al., ICLR 2023)."""

from typing import Annotated, Literal

from pydantic import Field

from blindmerge.manifest import Block
from blindmerge.merge.method import BlockEvidence, Options, Solved, Weights, deltas
from blindmerge.statistic import Schema, Statistic

__all__ = ["TaskArithmetic"]


class TaskArithmetic(Options):
    """W* = W_0 + scale * sum_k D_k; `scale` is the paper's lambda."""

    name: Literal["task-arithmetic"] = "task-arithmetic"
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3

    def schema_of(self, block: Block) -> Schema:
        """`<tensor>:delta` for every tensor."""
        return {f"{name}:delta": shape for name, shape in block.shapes.items()}

    def contribution(self, block: Block, evidence: BlockEvidence) -> Statistic:
        """The deltas ("task vectors")."""
        found = deltas(block, evidence)
        return Statistic(self.schema_of(block), {f"{name}:delta": found[name] for name in found})

    def solve(self, block: Block, total: Statistic, base: Weights) -> Solved:
        """Adds the scaled sum to the base."""
        return Solved(
            {name: base[name] + self.scale * total[f"{name}:delta"] for name in block.shapes}
        )
