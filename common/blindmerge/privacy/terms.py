"""What a plan says about noise. All of it is public, and none of it follows from private data.

Which methods may run with noise is a table with reasons (`REASONS`). In "statistics" mode the
Gram matrices get noise; in "end-to-end" mode the model was trained with noise as well.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from blindmerge.manifest import Group, Manifest, Rows
from blindmerge.privacy.accountant import Cost, rho_of
from blindmerge.privacy.mechanism import GroupTerms, NoiseTerms

__all__ = [
    "REASONS",
    "GramNoise",
    "Noise",
    "NoiseMode",
    "Unit",
    "alone",
    "gram_groups",
    "public_rows",
]

NoiseMode: TypeAlias = Literal["statistics", "end-to-end"]
Unit: TypeAlias = Literal["example", "person"]

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")

REASONS: Mapping[str, str | None] = {
    "average": None,
    "regmean": None,
    "task-arithmetic": None,
    "ties": "which changes it keeps is not measured with noise; take 'average'",
    "fisher": "squared gradients have no bound that could be clipped in integers",
    "regmean++": "its Gram matrices are of the merged model, layer by layer, and each is a release "
    "of its own; this is not measured",
    "progressive": "it needs noise on both its sums, with one clip, layer by layer; this is not "
    "measured",
}
"""Why a method may not run with noise; None if it may."""


class GramNoise(BaseModel):
    """Noise on Gram matrices (PROOF.md §2 to §5).

    multiplier: z, noise per clip.   clip: C, the largest joint norm of a unit.
    weights: a_l of every group of the model in forward order; a group with weight 0 is not
        released, and its layers are averaged.   bits: of the integers, with sign.
    """

    model_config = _STRICT
    multiplier: Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)]
    clip: Annotated[float, Field(ge=2.0**-64, le=2.0**64, allow_inf_nan=False)]
    weights: Annotated[
        tuple[Annotated[float, Field(ge=0, le=2.0**64, allow_inf_nan=False)], ...],
        Field(min_length=1),
    ]
    bits: Annotated[int, Field(ge=2, le=20)] = 20

    def weight_of(self, manifest: Manifest) -> dict[str, float]:
        """a_l by name of the group, of those that are released."""
        pairs = zip(gram_groups(manifest), self.weights, strict=True)
        return {group.name: weight for group, weight in pairs if weight > 0}


class Noise(BaseModel):
    """Noise in a job.

    epsilon, delta: what all that leaves an owner for the job costs, at most: of the statistics,
        or in "end-to-end" mode of training and statistics together.
    unit: what the guarantee is for, an example or all examples of a person.
    unit_examples: how many examples a unit may have; 1 if it is an example.
    grams: None if the method sends no statistics of inputs.
    """

    model_config = _STRICT
    mode: NoiseMode
    epsilon: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Unit = "example"
    unit_examples: Annotated[int, Field(ge=1, le=1 << 14)] = 1
    grams: GramNoise | None

    @property
    def cost(self) -> Cost:
        """Of the statistics of one job; nothing if there are none."""
        if self.grams is None:
            return Cost()
        return Cost(Fraction(rho_of(self.grams.multiplier)))

    def terms(self, manifest: Manifest, max_length: int) -> NoiseTerms:
        """What the mechanism needs to know.

        max_length: tokens of an example.   Raises ConfigInvalid for what is out of its range.
        """
        if self.grams is None:
            raise ValueError("there are no statistics that would get noise")
        widths = {group.name: group.width for group in gram_groups(manifest)}
        weights = self.grams.weight_of(manifest)
        return NoiseTerms(
            groups={name: GroupTerms(widths[name], weight) for name, weight in weights.items()},
            clip=self.grams.clip,
            multiplier=self.grams.multiplier,
            most_rows=max_length * self.unit_examples,
            bits=self.grams.bits,
        )


_ALONE: frozenset[Rows] = frozenset({"tokens", "sequences", "last-tokens"})


def public_rows(group: Group, examples: int, max_length: int) -> int:
    """What a noised Gram matrix counts as one over: the same for every owner (PROOF.md §1.4).

    So an owner with more examples counts for more, as it does against its noise.
    """
    return examples * (max_length if group.rows == "tokens" else 1)


def alone(group: Group) -> bool:
    """Whether every row of the group's input belongs to one example, and to it once.

    Layers that run several times in a pass, or on a table of positions, have other rows too; how
    many rows an expert gets, only the data say.
    """
    return group.rows in _ALONE and not group.repeated


def gram_groups(manifest: Manifest) -> tuple[Group, ...]:
    """Every group of layers with a common input, in forward order."""
    return tuple(group for block in manifest.blocks for group in block.groups)
