"""What a merge method is: a local contribution, a sum, and a solve."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar, Literal, Protocol, Self, TypeAlias

from pydantic import BaseModel, ConfigDict

from blindmerge.errors import PeerInvalid
from blindmerge.manifest import Block, Manifest
from blindmerge.statistic import Array, Schema, Statistic

__all__ = [
    "BlockEvidence",
    "CrossGramEvidence",
    "Evidence",
    "GramEvidence",
    "LayerReport",
    "MergeMethod",
    "Options",
    "Products",
    "Solved",
    "Weighting",
    "Weights",
    "deltas",
    "total_weight",
]

Weights: TypeAlias = Mapping[str, Array]
Weighting: TypeAlias = Literal["equal", "tokens"]
"""`equal`: every owner counts the same; `tokens`: by the tokens of its examples."""


Products: TypeAlias = Literal["float64", "float32"]
"""How an owner multiplies rows of inputs: in float64, or blocks of them in float32, which takes
half the time and is off by at most 1.3e-4 sum |x_i x_j|, usually by a hundredth of that."""


class Evidence(Enum):
    """What an owner has to collect beyond its weights."""

    GRAM = "gram"
    FISHER = "fisher"
    CROSS_GRAM = "cross-gram"
    MERGED_GRAM = "merged-gram"


@dataclass(frozen=True, slots=True)
class GramEvidence:
    """Second moment of the inputs of a group of layers, in one model.

    total: X~^T X~ [width, width], float64, symmetric, summed over rows; X~ = [X, 1] if the
        layers have biases.
    rows: how many rows were summed.
    half: the same of the first of two halves of the examples, if a method wants it.
    """

    total: Array
    rows: int
    half: "GramEvidence | None" = None


@dataclass(frozen=True, slots=True)
class CrossGramEvidence:
    """Second moments of what a group of layers gets in two models, row by row the same token.

    X'~ are the inputs in the model merged so far, X~ those in the owner's own.
    total: X'~^T X'~, cross: X'~^T X~, both [width, width], float64, summed over rows.
    half: the same of the first of two halves of the examples, if a method wants it.
    """

    total: Array
    cross: Array
    rows: int
    half: "CrossGramEvidence | None" = None


@dataclass(frozen=True, slots=True)
class BlockEvidence:
    """All that an owner knows of one block; a method takes what it needs.

    base, own: every tensor of the block, float64, as shaped in the checkpoint.
    tokens: real tokens in the examples.   fishers: by tensor name.
    grams, merged_grams, cross_grams: by group name; of the inputs in the owner's own model, in
        the one merged so far, and in both.
    """

    base: Weights
    own: Weights
    tokens: int
    grams: Mapping[str, GramEvidence] = field(default_factory=dict)
    fishers: Mapping[str, Array] = field(default_factory=dict)
    cross_grams: Mapping[str, CrossGramEvidence] = field(default_factory=dict)
    merged_grams: Mapping[str, GramEvidence] = field(default_factory=dict)

    def first_half(self) -> "BlockEvidence":
        """The moments of the first half of the examples, of the groups that have it."""
        return replace(
            self,
            grams={n: each.half for n, each in self.grams.items() if each.half},
            cross_grams={n: each.half for n, each in self.cross_grams.items() if each.half},
            merged_grams={n: each.half for n, each in self.merged_grams.items() if each.half},
        )

    def weight(self, weighting: Weighting) -> float:
        """How much this owner counts in a mean."""
        return 1.0 if weighting == "equal" else float(self.tokens)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What the solve did with the layers of one group.

    condition_number: of the scaled matrix that was factorised, in the 1-norm, as LAPACK
        estimates it: never above the truth, hardly ever below a third of it.
    ridge: rho as used, after raises.   rows: of all owners together.
    residual: of the equations, relative, see `ridge.Solution`; times the condition number it is
        about the relative error of the layers.
    fallback: why the layers were averaged instead; None if they were not.
    """

    block: str
    layers: tuple[str, ...]
    rows: int
    condition_number: float | None
    ridge: float | None
    residual: float | None
    fallback: str | None


@dataclass(frozen=True, slots=True)
class Solved:
    """The merged tensors of a block, float64, and what was done for them.

    interim: the tensors in which later blocks are measured, if the method `revises`.
    """

    weights: Weights
    layers: tuple[LayerReport, ...] = ()
    interim: Weights | None = None


class Options(BaseModel):
    """Base of the methods: a method *is* its options, frozen and validated."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    progressive: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[Evidence]:
        """What an owner has to collect beyond its weights."""
        return frozenset()

    @property
    def halves(self) -> bool:
        """Whether moments are also needed of one half of the examples alone."""
        return False

    @property
    def revises(self) -> bool:
        """Whether merged tensors are others in the end than while the job ran."""
        return False

    @property
    def informed_by(self) -> int:
        """How many examples Fisher information is taken over, at most."""
        return 0

    def informed(self, block: Block) -> tuple[str, ...]:
        """The tensors of a block whose Fisher information is needed."""
        del block
        return ()

    def check(self, manifest: Manifest) -> None:
        """Raises ConfigInvalid if the method cannot merge such a model."""

    def for_sample(self) -> Self:
        """The same method for an owner of a handful of examples, whose numbers are a sample."""
        return self

    def blocks_of(self, manifest: Manifest) -> tuple[Block, ...]:
        """What a model is merged in: every tensor once, in forward order."""
        return manifest.blocks


class MergeMethod(Protocol):
    """The interface of a merge method.

    The laws that every method keeps (order of owners, equal owners, schema without data,
    equality with a central formula) are the suite `tests/conformance`.
    """

    progressive: ClassVar[bool]
    """Whether what an owner sends for a block depends on the blocks merged before."""

    @property
    def name(self) -> str:
        """The method's name in plans and reports."""

    @property
    def needs(self) -> frozenset[Evidence]:
        """What an owner has to collect beyond its weights."""

    @property
    def halves(self) -> bool:
        """Whether moments are also needed of one half of the examples alone."""

    @property
    def revises(self) -> bool:
        """Whether merged tensors are others in the end than while the job ran.

        Then `Solved.interim` is what later blocks are measured in, and owners get the final
        tensors of all blocks after the last sum.
        """

    @property
    def informed_by(self) -> int:
        """How many examples Fisher information is taken over, at most."""

    def informed(self, block: Block) -> tuple[str, ...]:
        """The tensors of a block whose Fisher information is needed."""

    def check(self, manifest: Manifest) -> None:
        """Raises ConfigInvalid if the method cannot merge such a model."""

    def for_sample(self) -> Self:
        """The same method for an owner of a handful of examples, whose numbers are a sample."""

    def blocks_of(self, manifest: Manifest) -> tuple[Block, ...]:
        """What a model is merged in: every tensor once, in forward order."""

    def schema_of(self, block: Block) -> Schema:
        """Names and shapes of what an owner sends for `block`; depends on the plan only."""

    def contribution(self, block: Block, evidence: BlockEvidence) -> Statistic:
        """What one owner sends.

        Raises SchemaMismatch or NotFinite if the evidence does not fit the block.
        """

    def solve(self, block: Block, total: Statistic, base: Weights) -> Solved:
        """The merged tensors, from the sum over the owners and the base weights.

        total: with the schema `schema_of(block)`.   base: every tensor of the block.
        Raises PeerInvalid if the sum cannot be one over owners.
        """


def deltas(block: Block, evidence: BlockEvidence) -> dict[str, Array]:
    """D = W_k - W_0 of every tensor of the block."""
    return {name: evidence.own[name] - evidence.base[name] for name in block.shapes}


def total_weight(total: Statistic) -> float:
    """The sum of the owners' weights, which a mean is divided by.

    Raises PeerInvalid unless it is positive.
    """
    weight = float(total["weight"][0])
    if not weight > 0:
        raise PeerInvalid(
            f"the weights of the owners add up to {weight:g}, not to a positive number",
            hint='with weighting = "tokens" an owner without examples counts for nothing',
        )
    return weight
