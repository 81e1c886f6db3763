"""Progressive RegMean: layer-wise distillation into one model, in closed form, from sums.

RegMean asks of a merged layer what the owner's layer does to the owner's *own* activations. In
the merged model it gets others: what is off in early layers piles up. Here the model is
merged in forward order. X'_k are the inputs that a layer gets in the model merged so far, X_k
those in the owner's own model, for the same tokens of the owner's examples; the layer shall
turn the former into what the owner's model makes of the latter, Y_k = X_k W_k. With

    G'_k = X'_k^T X'_k / m_k    and    H_k = X'_k^T X_k / m_k

an owner sends G'_k and M_k = H_k W_k - G'_k W_0 = G'_k D_k + (H_k - G'_k) W_k: names and shapes
are RegMean's, and so is the solve (see `least_squares`). Only the number of sums differs: what
a layer gets depends on all merged before.

Relatives have all texts in one place. IterIS (Chen et al., CVPR 2025) solves this regression
for LoRA adapters, all layers at once, and repeats it; ProDistill (Xu et al., ICML 2025) distils
layer by layer, but learns coefficients by gradient. RegMean++ (Nguyen et al., 2025) takes X'_k
and asks for X'_k W_k, so it does not correct what came before.
"""

from typing import ClassVar, Literal

from blindmerge.manifest import Group
from blindmerge.merge.forward_order import ForwardOrder
from blindmerge.merge.least_squares import Equations
from blindmerge.merge.method import BlockEvidence, Evidence
from blindmerge.merge.stacking import stacked

__all__ = ["Progressive"]


class Progressive(ForwardOrder):
    """The options of progressive RegMean: those of every method that merges in forward order."""

    moments: ClassVar[Evidence] = Evidence.CROSS_GRAM
    name: Literal["progressive"] = "progressive"

    def rows(self, group: Group, evidence: BlockEvidence) -> int:
        """Of both models' activations, which come in pairs."""
        return evidence.cross_grams[group.name].rows

    def equations(self, group: Group, evidence: BlockEvidence) -> Equations:
        """G'_k, and M_k as the sum that is exact where both models get the same."""
        pair = evidence.cross_grams[group.name]
        drift = pair.cross - pair.total
        moments = {}
        for layer in group.layers:
            own, base = stacked(layer, evidence.own), stacked(layer, evidence.base)
            moments[layer.name] = pair.total @ (own - base) + drift @ own
        return Equations(pair.total, moments)
