"""Fisher merging: a mean weighted by the diagonal Fisher information
(Matena and Raffel, NeurIPS 2022, eq. 4).

The Fisher is the true one, E_x E_{y ~ p(y|x)} of the squared gradient of one example: squaring
a gradient that was summed over a batch, as several public codes do, is another quantity.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from blindmerge.manifest import Block
from blindmerge.merge.method import (
    BlockEvidence,
    Evidence,
    Options,
    Solved,
    Weighting,
    Weights,
    deltas,
    total_weight,
)
from blindmerge.statistic import Array, Schema, Statistic

__all__ = [
    "FISHER_FLOOR",
    "Fisher",
    "informed_mean",
    "informed_shapes",
    "informed_sums",
]

FISHER_FLOOR = 1e-6
_KINDS = ("fisher", "fisher-delta")


def informed_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Schema:
    """For every tensor `:fisher` and `:fisher-delta`.   shapes: of the tensors."""
    return {f"{name}:{kind}": shape for name, shape in shapes.items() for kind in _KINDS}


def informed_sums(names: Iterable[str], evidence: BlockEvidence, weight: float) -> dict[str, Array]:
    """F_k and F_k D_k of the named tensors, times the owner's weight."""
    arrays = {}
    for name in names:
        fisher = weight * evidence.fishers[name]
        arrays[f"{name}:fisher"] = fisher
        arrays[f"{name}:fisher-delta"] = fisher * (evidence.own[name] - evidence.base[name])
    return arrays


def informed_mean(
    means: Mapping[str, Array], total: Statistic, floor: float = FISHER_FLOOR
) -> dict[str, Array]:
    """(sum F_k D_k + e mean D_k) / (sum F_k + e) of every tensor (see `Fisher`).

    means: mean D_k by tensor.   total: with the shapes of `informed_shapes`.
    """
    fishers = {name: total[f"{name}:fisher"] for name in means}
    least = floor * max((float(fisher.mean()) for fisher in fishers.values()), default=0.0)
    if not least > 0:  # nobody has any information
        return dict(means)
    return {
        name: (total[f"{name}:fisher-delta"] + least * mean) / (fishers[name] + least)
        for name, mean in means.items()
    }


class Fisher(Options):
    """W* = W_0 + (sum F_k D_k + e sum D_k) / (sum F_k + e K), element by element.

    e = floor * max mean(sum F_k) / K, the largest mean among the tensors of a block. Where no owner
    has information the result is the average, not 0/0: in the embedding of a word that nobody
    uses, and in a bias of attention keys, which softmax does not see. Its Fisher is rounding
    noise, so a floor relative to the tensor itself would weight the owners by noise.

    examples: an owner's Fisher is taken over at most so many of the job's examples; a
        gradient per example and label is dear, and a few hundred are enough for a diagonal.
    """

    name: Literal["fisher"] = "fisher"
    weighting: Weighting = "equal"
    floor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = FISHER_FLOOR
    examples: Annotated[int, Field(ge=1)] = 256

    @property
    def needs(self) -> frozenset[Evidence]:
        """The Fisher information."""
        return frozenset({Evidence.FISHER})

    @property
    def informed_by(self) -> int:
        """The option `examples`."""
        return self.examples

    def informed(self, block: Block) -> tuple[str, ...]:
        """All tensors."""
        return tuple(block.shapes)

    def schema_of(self, block: Block) -> Schema:
        """`weight` [1]; for every tensor `:delta`, `:fisher` and `:fisher-delta`."""
        deltas = {f"{name}:delta": shape for name, shape in block.shapes.items()}
        return {"weight": (1,), **deltas, **informed_shapes(block.shapes)}

    def contribution(self, block: Block, evidence: BlockEvidence) -> Statistic:
        """F_k, F_k D_k and D_k, all times the owner's weight."""
        weight = evidence.weight(self.weighting)
        arrays: dict[str, Array] = {"weight": np.array([weight])}
        for name, delta in deltas(block, evidence).items():
            arrays[f"{name}:delta"] = weight * delta
        arrays |= informed_sums(block.shapes, evidence, weight)
        return Statistic(self.schema_of(block), arrays)

    def solve(self, block: Block, total: Statistic, base: Weights) -> Solved:
        """The ratio of the sums; the plain average of a block without any information."""
        owners = total_weight(total)
        means = {name: total[f"{name}:delta"] / owners for name in block.shapes}
        moved = informed_mean(means, total, self.floor)
        return Solved({name: base[name] + delta for name, delta in moved.items()})
