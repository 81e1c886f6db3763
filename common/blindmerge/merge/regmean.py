"""RegMean: regression mean of linear layers (Jin et al., ICLR 2023, section 3).

Every layer of the merged model shall do to an owner's own activations what the owner's layer
does: Y_k = X_k W_k, so M_k = G_k D_k (notation and solve: see `least_squares`), which is the
paper's eq. 2. All of it is known before anything is merged, so one sum is enough.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from blindmerge.manifest import Group
from blindmerge.merge.least_squares import Equations, LeastSquares
from blindmerge.merge.method import BlockEvidence, Evidence
from blindmerge.merge.stacking import stacked

__all__ = ["RegMean"]


class RegMean(LeastSquares):
    """The options of RegMean, beside those of every least squares method.

    off_diagonal: the paper's alpha; every owner's off-diagonal entries are multiplied by it
        before anything is computed. 1 leaves them as they are.
    """

    moments: ClassVar[Evidence] = Evidence.GRAM
    name: Literal["regmean"] = "regmean"
    off_diagonal: Annotated[float, Field(ge=0, le=1)] = 1.0

    def rows(self, group: Group, evidence: BlockEvidence) -> int:
        """Of the owner's own activations."""
        return evidence.grams[group.name].rows

    def equations(self, group: Group, evidence: BlockEvidence) -> Equations:
        """G_k, shrunk by alpha, and G_k D_k."""
        gram = evidence.grams[group.name].total
        if self.off_diagonal != 1.0:
            diagonal = np.diagonal(gram)
            gram = self.off_diagonal * gram
            np.fill_diagonal(gram, diagonal)
        moments = {
            layer.name: gram @ (stacked(layer, evidence.own) - stacked(layer, evidence.base))
            for layer in group.layers
        }
        return Equations(gram, moments)
