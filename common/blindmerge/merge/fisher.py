"""Fisher merging: a mean weighted by the diagonal Fisher information
(Matena and Raffel, NeurIPS 2022, eq. 4).

The Fisher is the true one, E_x E_{y ~ p(y|x)} of the squared gradient of one example: squaring
a gradient that was summed over a batch, as several public codes do, is another quantity.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from blindmerge.errors import ConfigInvalid
from blindmerge.manifest import Block, Manifest, Rows
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

__all__ = ["Fisher"]

_SHARED = ("relative_attention_bias.weight", "rel_embeddings.weight")  # by all examples
_CALLED_TWICE: frozenset[Rows] = frozenset({"tokens-and-positions"})


class Fisher(Options):
    """W* = W_0 + (sum F_k D_k + e sum D_k) / (sum F_k + e K), element by element.

    e = floor * max mean(sum F_k) / K, the largest mean among the tensors of a block. Where no owner
    has information the result is the average, not 0/0: in the embedding of a word that nobody
    uses, and in a bias of attention keys, which softmax does not see. Its Fisher is rounding
    noise, so a floor relative to the tensor itself would weight the owners by noise.

    examples: an owner's Fisher is taken over at most so many of the job's examples; a
        gradient per example and label is dear, and a few hundred are enough for a diagonal.
    """

    needs: ClassVar[frozenset[Evidence]] = frozenset({Evidence.FISHER})
    name: Literal["fisher"] = "fisher"
    weighting: Weighting = "equal"
    floor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    examples: Annotated[int, Field(ge=1)] = 256

    def check(self, manifest: Manifest) -> None:
        """Refuses layers whose gradient of one example is not that of one call.

        Squares of single gradients are what is asked, and hooks see a gradient per call.
        """
        for block in manifest.blocks:
            shared = [m.name for m in block.means if m.name.endswith(_SHARED)]
            again = [g.name for g in block.groups if g.repeated or g.rows in _CALLED_TWICE]
            experts = [g.name for g in block.groups if g.expert is not None]
            if experts:
                raise ConfigInvalid(
                    f"there is no Fisher information of '{experts[0]}': experts are computed "
                    "together, without a gradient for each example",
                    hint='use another method, such as "regmean"',
                )
            if shared or again:
                raise ConfigInvalid(
                    f"there is no Fisher information of '{(shared + again)[0]}' for each example: "
                    "it is used several times in one pass",
                    hint='use another method, such as "regmean"',
                )

    def schema_of(self, block: Block) -> Schema:
        """`weight` [1]; for every tensor `:fisher`, `:fisher-delta` and `:delta`."""
        kinds = ("fisher", "fisher-delta", "delta")
        return {
            "weight": (1,),
            **{f"{name}:{kind}": shape for name, shape in block.shapes.items() for kind in kinds},
        }

    def contribution(self, block: Block, evidence: BlockEvidence) -> Statistic:
        """F_k, F_k D_k and D_k, all times the owner's weight."""
        weight = evidence.weight(self.weighting)
        arrays: dict[str, Array] = {"weight": np.array([weight])}
        for name, delta in deltas(block, evidence).items():
            fisher = weight * evidence.fishers[name]
            arrays[f"{name}:fisher"] = fisher
            arrays[f"{name}:fisher-delta"] = fisher * delta
            arrays[f"{name}:delta"] = weight * delta
        return Statistic(self.schema_of(block), arrays)

    def solve(self, block: Block, total: Statistic, base: Weights) -> Solved:
        """The ratio of the sums; the plain average of a block without any information."""
        weights = {}
        owners = total_weight(total)
        fishers = {name: total[f"{name}:fisher"] for name in block.shapes}
        floor = self.floor * max(float(fisher.mean()) for fisher in fishers.values())
        for name, fisher in fishers.items():
            delta = total[f"{name}:delta"]
            if floor > 0:
                moved = (total[f"{name}:fisher-delta"] + floor / owners * delta) / (fisher + floor)
            else:
                moved = delta / owners
            weights[name] = base[name] + moved
        return Solved(weights)
