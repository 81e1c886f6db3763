"""What a manifest is made of: blocks of groups of linear layers, and of averaged tensors."""

from collections import Counter
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Block", "Group", "Linear", "Manifest", "Mean", "Rows"]

Rows: TypeAlias = Literal["tokens", "sequences"]
"""What a row of a layer's input is: a real token, or a whole text."""

_Count: TypeAlias = Annotated[int, Field(ge=1)]
_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")


class Linear(BaseModel):
    """One `torch.nn.Linear`: `weight` is [outputs, inputs], `bias` [outputs] or absent."""

    model_config = _STRICT
    name: str
    outputs: _Count
    bias: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of its tensors in a checkpoint."""
        weight, bias = f"{self.name}.weight", f"{self.name}.bias"
        return (weight, bias) if self.bias else (weight,)


class Group(BaseModel):
    """Linear layers with a common input tensor, hence one Gram matrix.

    inputs: width of the input without the bias row.   rows: what one row of it is.
    """

    model_config = _STRICT
    name: str
    inputs: _Count
    rows: Rows
    layers: Annotated[tuple[Linear, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _biases_agree(self) -> "Group":
        if len({layer.bias for layer in self.layers}) != 1:
            raise ValueError("some layers have a bias and some have none")
        return self

    @property
    def bias(self) -> bool:
        """Whether the layers have biases (all or none have)."""
        return self.layers[0].bias

    @property
    def width(self) -> int:
        """Width of the Gram matrix: inputs, plus one for the bias row (merging of `[W; b]`)."""
        return self.inputs + self.bias


class Mean(BaseModel):
    """A tensor that is averaged: embeddings, LayerNorm."""

    model_config = _STRICT
    name: str
    shape: tuple[_Count, ...]


class Block(BaseModel):
    """What is merged at once: the part of a model that one statistic is about.

    module: path of the transformer layer that the block is, is a part of, or comes just before;
    empty for embeddings and for the head.
    """

    model_config = _STRICT
    name: str
    module: str
    groups: tuple[Group, ...]
    means: tuple[Mean, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the block, in the order of the manifest."""
        shapes = {mean.name: mean.shape for mean in self.means}
        for group in self.groups:
            for layer in group.layers:
                shapes[f"{layer.name}.weight"] = (layer.outputs, group.inputs)
                if layer.bias:
                    shapes[f"{layer.name}.bias"] = (layer.outputs,)
        return shapes


class Manifest(BaseModel):
    """All blocks of a model, in forward order; no tensor and no group stands in it twice."""

    model_config = _STRICT
    architecture: str
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_rule_each(self) -> "Manifest":
        tensors = [mean.name for block in self.blocks for mean in block.means]
        groups = [group for block in self.blocks for group in block.groups]
        tensors += [name for group in groups for layer in group.layers for name in layer.tensors]
        for names in (tensors, [group.name for group in groups], [b.name for b in self.blocks]):
            if names and Counter(names).most_common(1)[0][1] > 1:
                raise ValueError("a tensor, group or block occurs twice")
        return self

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the transformer layers, in forward order."""
        return tuple(dict.fromkeys(block.module for block in self.blocks if block.module))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model."""
        return {name: shape for block in self.blocks for name, shape in block.shapes.items()}
