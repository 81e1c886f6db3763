"""Least squares over linear layers from sums: what RegMean and its relatives share.

Notation. Of a linear layer with inputs x (one row per real token), x~ = [x, 1] if it has a
bias, the outputs Y are asked. W is [width, outputs]: a weight transposed, with the bias as its
last row; D_k = W_k - W_0. Owners send G_k = X~^T X~ / m_k, M_k = X~^T (Y - X~ W_0) / m_k and D_k;
their sums are enough:

    W* = W_0 + D + (S + rho t I)^-1 (M - S D)     (solved in `ridge`)
    S = sum G_k,  M = sum M_k,  D = mean D_k,  t = mean(diag S)

which minimises sum_k || X_k W - Y_k ||^2 / m_k for rho = 0 and is the plain average for
rho -> infinity. The ridge acts on the *difference from the mean*: on raw weights it would pull
the layer to zero, worse than the average by a factor when rows are few. M is linear in the
reference W_0, so the server moves it to the mean after the sum.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from blindmerge.manifest import Block, Group
from blindmerge.merge.fisher import (
    informed_mean,
    informed_shapes,
    informed_sums,
)
from blindmerge.merge.method import (
    BlockEvidence,
    Evidence,
    LayerReport,
    Options,
    Products,
    Solved,
    Weighting,
    Weights,
    total_weight,
)
from blindmerge.merge.ridge import solve_ridge, two_fold
from blindmerge.merge.stacking import put_stacked, stacked
from blindmerge.statistic import (
    Array,
    Schema,
    Statistic,
    pack_symmetric,
    packed_size,
)

__all__ = ["Equations", "LeastSquares"]


@dataclass(frozen=True, slots=True)
class Equations:
    """The normal equations of one group at one owner, summed over rows.

    gram: X~^T X~ [width, width].   moments: X~^T (Y - X~ W_0) [width, outputs], by layer.
    """

    gram: Array
    moments: Mapping[str, Array]


class LeastSquares(Options):
    """The options of every method that solves least squares, its schema and its solve.

    weighting: `equal` divides an owner's sums by its rows; `tokens` does not, so that long
        data sets count for more.
    ridge: rho above, relative to the mean of the diagonal.
    shrinkage: `fixed` takes the ridge as it is. With `two-fold` the server chooses one for each
        group (see `ridge.two_fold`), and owners also send the sums over half of their examples.
    rows_factor: a group in which an owner has fewer than rows_factor * width rows is
        averaged: such a Gram matrix says little, and says it about few people. A group
        without any row is averaged in any case.
    products: how owners multiply the inputs' rows (`method.Products`).
    fisher_share: part of Fisher merging in the linear layers of the merged model, a mean of
        two merged models (Wortsman et al., ICML 2022): (1 - share) W* + share W_Fisher. It is
        taken when all is solved; a method in forward order measures later layers without it.
    fisher_examples: an owner's Fisher information is taken over at most so many examples.
    """

    moments: ClassVar[Evidence]

    weighting: Weighting = "equal"
    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    shrinkage: Literal["fixed", "two-fold"] = "fixed"
    rows_factor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0
    products: Products = "float64"
    fisher_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fisher_examples: Annotated[int, Field(ge=1)] = 256

    @property
    def needs(self) -> frozenset[Evidence]:
        """Moments of inputs, and Fisher information for a share of it."""
        shared = {Evidence.FISHER} if self.fisher_share else set()
        return frozenset({self.moments, *shared})

    @property
    def halves(self) -> bool:
        """For the choice of the ridge."""
        return self.shrinkage == "two-fold"

    @property
    def revises(self) -> bool:
        """Later layers correct the regression of earlier ones, not what it is mixed with."""
        return self.progressive and self.fisher_share > 0

    @property
    def informed_by(self) -> int:
        """The option `fisher_examples`."""
        return self.fisher_examples

    def informed(self, block: Block) -> tuple[str, ...]:
        """The tensors of linear layers, for a share of Fisher merging."""
        if not self.fisher_share:
            return ()
        averaged = {mean.name for mean in block.means}
        return tuple(name for name in block.shapes if name not in averaged)

    @abstractmethod
    def rows(self, group: Group, evidence: BlockEvidence) -> int:
        """How many rows the group's sums are over."""

    @abstractmethod
    def equations(self, group: Group, evidence: BlockEvidence) -> Equations:
        """What this method asks of the layers of the group."""

    def for_sample(self) -> Self:
        """Regresses groups of however few rows."""
        return self.model_copy(update={"rows_factor": 0.0})

    def schema_of(self, block: Block) -> Schema:
        """`weight` [1]; `<tensor>:delta` for averaged tensors; per group `:rows` and `:starved`
        [1] and `:gram` (packed triangle); per layer `:delta` and `:moment` [width, outputs];
        `<tensor>:fisher` and `:fisher-delta` for a share of Fisher merging; `:half-gram` and
        `:half-moment` for a choice of the ridge.
        """
        shapes: dict[str, tuple[int, ...]] = {"weight": (1,)}
        for mean in block.means:
            shapes[f"{mean.name}:delta"] = mean.shape
        for group in block.groups:
            shapes[f"{group.name}:rows"] = (1,)
            shapes[f"{group.name}:starved"] = (1,)
            shapes[f"{group.name}:gram"] = (packed_size(group.width),)
            for layer in group.layers:
                for kind in ("delta", "moment"):
                    shapes[f"{layer.name}:{kind}"] = (group.width, layer.outputs)
            if self.halves:
                shapes[f"{group.name}:half-gram"] = (packed_size(group.width),)
                for layer in group.layers:
                    shapes[f"{layer.name}:half-moment"] = (group.width, layer.outputs)
        informed = {name: block.shapes[name] for name in self.informed(block)}
        return shapes | dict(informed_shapes(informed))

    def contribution(self, block: Block, evidence: BlockEvidence) -> Statistic:
        """G_k, M_k and D_k of every group; zeros for G_k and M_k if it has too few rows."""
        weight = evidence.weight(self.weighting)
        arrays: dict[str, Array] = {"weight": np.array([weight])}
        for mean in block.means:
            delta = evidence.own[mean.name] - evidence.base[mean.name]
            arrays[f"{mean.name}:delta"] = weight * delta
        for group in block.groups:
            arrays |= self._contribution_of(group, evidence, weight)
        arrays |= informed_sums(self.informed(block), evidence, weight)
        return Statistic(self.schema_of(block), arrays)

    def _contribution_of(
        self, group: Group, evidence: BlockEvidence, weight: float
    ) -> dict[str, Array]:
        rows = self.rows(group, evidence)
        starved = self._fewest_rows(group, evidence) < max(1.0, self.rows_factor * group.width)
        arrays = {
            f"{group.name}:rows": np.array([float(rows)]),
            f"{group.name}:starved": np.array([float(starved)]),
        }
        for layer in group.layers:
            delta = stacked(layer, evidence.own) - stacked(layer, evidence.base)
            arrays[f"{layer.name}:delta"] = weight * delta
        scale = 0.0 if starved else 1.0 / rows if self.weighting == "equal" else 1.0
        arrays |= self._moments_of(group, None if starved else evidence, scale, "")
        if self.halves:
            half = None if starved else evidence.first_half()
            arrays |= self._moments_of(group, half, scale, "half-")
        return arrays

    def _fewest_rows(self, group: Group, evidence: BlockEvidence) -> int:
        """What the group's smallest sum is over."""
        rows = self.rows(group, evidence)
        if not self.halves:
            return rows
        half = evidence.first_half()
        # Of a single example, or with noise, there is no half.
        has = any(group.name in each for each in (half.grams, half.merged_grams, half.cross_grams))
        first = self.rows(group, half) if has else 0
        return min(first, rows - first)

    def _moments_of(
        self, group: Group, evidence: BlockEvidence | None, scale: float, prefix: str
    ) -> dict[str, Array]:
        """`:gram` and `:moment` of a group, times `scale`; zeros without evidence."""
        if evidence is None:
            zeros = {
                f"{layer.name}:{prefix}moment": np.zeros((group.width, layer.outputs))
                for layer in group.layers
            }
            return {f"{group.name}:{prefix}gram": np.zeros(packed_size(group.width)), **zeros}
        equations = self.equations(group, evidence)
        gram = pack_symmetric(equations.gram)
        gram *= scale
        moments = {
            f"{layer.name}:{prefix}moment": scale * equations.moments[layer.name]
            for layer in group.layers
        }
        return {f"{group.name}:{prefix}gram": gram, **moments}

    def solve(self, block: Block, total: Statistic, base: Weights) -> Solved:
        """Means for averaged tensors, one factorisation per group for the rest."""
        weight = total_weight(total)
        weights = {m.name: base[m.name] + total[f"{m.name}:delta"] / weight for m in block.means}
        for name in block.shapes.keys() - weights.keys():
            weights[name] = np.empty(block.shapes[name])
        reports = []
        for group in block.groups:
            solved, report = self._solve_group(block, group, total, weight)
            reports.append(report)
            for layer in group.layers:
                put_stacked(layer, solved[layer.name], base, weights)
        if not self.fisher_share:
            return Solved(weights, tuple(reports))
        mixed = self._mixed(block, total, base, weights)
        return Solved(mixed, tuple(reports), weights if self.revises else None)

    def _mixed(self, block: Block, total: Statistic, base: Weights, weights: Weights) -> Weights:
        """The mean of the regression's weights and of Fisher merging's."""
        owners = total_weight(total)
        means = {name: np.empty(block.shapes[name]) for name in self.informed(block)}
        nothing = {name: np.zeros(mean.shape) for name, mean in means.items()}
        for group in block.groups:
            for layer in group.layers:
                put_stacked(layer, total[f"{layer.name}:delta"] / owners, nothing, means)
        informed = {n: base[n] + moved for n, moved in informed_mean(means, total).items()}
        share = self.fisher_share
        return {
            name: (1 - share) * weight + share * informed[name] if name in informed else weight
            for name, weight in weights.items()
        }

    def _summed(self, group: Group, total: Statistic, prefix: str) -> tuple[Array, Array]:
        """S, packed, and M of all layers of the group side by side."""
        moments = [total[f"{layer.name}:{prefix}moment"] for layer in group.layers]
        return total[f"{group.name}:{prefix}gram"], _beside(moments)

    def _solve_group(
        self, block: Block, group: Group, total: Statistic, weight: float
    ) -> tuple[dict[str, Array], LayerReport]:
        """W* - W_0 of every layer of the group."""
        names = [layer.name for layer in group.layers]
        mean = _beside([total[f"{name}:delta"] for name in names]) / weight
        starved = round(float(total[f"{group.name}:starved"][0]))
        fallback = solution = None
        if starved:
            needed = f"{self.rows_factor:g} x {group.width}"
            fallback = f"{starved} owner(s) had fewer than {needed} rows"
        else:
            gram, moment = self._summed(group, total, "")
            ridge = self.ridge
            if self.halves:
                ridge = two_fold((gram, moment), self._summed(group, total, "half-"), mean)
            solution = solve_ridge(gram, moment, mean, ridge)
            if solution is None:
                fallback = "the Gram matrix could not be factorised"
        ends = np.cumsum([layer.outputs for layer in group.layers])[:-1]
        report = LayerReport(
            block=block.name,
            layers=tuple(names),
            rows=round(float(total[f"{group.name}:rows"][0])),
            condition_number=None if solution is None else solution.condition_number,
            ridge=None if solution is None else solution.ridge,
            residual=None if solution is None else solution.residual,
            fallback=fallback,
        )
        merged = mean if solution is None else solution.weights
        return dict(zip(names, np.split(merged, ends, axis=1), strict=True)), report


def _beside(matrices: Sequence[Array]) -> Array:
    """Matrices side by side; a single one as it is, not copied."""
    return matrices[0] if len(matrices) == 1 else np.hstack(matrices)
