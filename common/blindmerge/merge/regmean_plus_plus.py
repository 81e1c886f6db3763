"""RegMean++: RegMean on what layers get in the merged model (Nguyen et al. 2025, section 4).

RegMean takes the inputs X_k of the owner's own model, which the merged model will never see.
Here they are those of the model merged so far, X'_k, and a merged layer shall do to them what
the owner's layer does: M_k = G'_k D_k with G'_k = X'_k^T X'_k / m_k (solve: see `least_squares`).
Errors of what was merged before are taken as they are; `progressive` corrects them.

The paper merges a transformer layer at a time, hence the default of `rounds`.
"""

from typing import ClassVar, Literal

from blindmerge.manifest import Group
from blindmerge.merge.forward_order import ForwardOrder
from blindmerge.merge.least_squares import Equations
from blindmerge.merge.method import BlockEvidence, Evidence
from blindmerge.merge.stacking import stacked

__all__ = ["RegMeanPlusPlus"]


class RegMeanPlusPlus(ForwardOrder):
    """The options of RegMean++: those of every method that merges in forward order."""

    moments: ClassVar[Evidence] = Evidence.MERGED_GRAM
    name: Literal["regmean++"] = "regmean++"
    rounds: Literal["group", "layer"] = "layer"

    def rows(self, group: Group, evidence: BlockEvidence) -> int:
        """Of the activations in the model merged so far."""
        return evidence.merged_grams[group.name].rows

    def equations(self, group: Group, evidence: BlockEvidence) -> Equations:
        """G'_k and G'_k D_k."""
        gram = evidence.merged_grams[group.name].total
        moments = {
            layer.name: gram @ (stacked(layer, evidence.own) - stacked(layer, evidence.base))
            for layer in group.layers
        }
        return Equations(gram, moments)
