"""What a manifest is made of: blocks of groups of linear layers, and of averaged tensors."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Block", "Group", "Layout", "Linear", "Manifest", "Mean", "Rows", "Stored"]

Rows: TypeAlias = Literal[
    "tokens",
    "target-tokens",
    "sequences",
    "last-tokens",
    "tokens-and-positions",
    "routed-tokens",
    "routed-activations",
    "patches",
    "unfolded-patches",
    "any",
]
"""What a row of a layer's input is.

`tokens`: a real token, of a pair of texts one of the source.   `target-tokens`: a real token of
the target of a pair.   `sequences`: a whole text.   `last-tokens`: the last real token of a
text, of a layer that runs on all of them.   `tokens-and-positions`: the layer runs on the tokens
and then on a table of positions, the same for every text; the table's rows count together as much
as the tokens.   `routed-tokens`: a real token that a router sends to the group's expert.
`routed-activations`: what the expert makes of it between its first layers and its last.
`patches`: a patch of an image, or the token that stands for all of it; none is padding.
`any`: whatever the layer gets, but for what a mask of the pass leaves out; of plain modules.
`unfolded-patches`: the numbers of a patch, channel by channel, of a convolution whose steps are as
wide as its window.
"""
Layout: TypeAlias = Literal["outputs-first", "inputs-first"]
"""How a weight matrix lies in its tensor: [outputs, inputs], as `torch.nn.Linear` has it, or
[inputs, outputs], as GPT-2's `Conv1D`."""

_Count: TypeAlias = Annotated[int, Field(ge=1)]
_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")


class Stored(BaseModel):
    """Where a layer's numbers are, if not in tensors of its own that are called as it is.

    weight: the tensor of this name and `shape` is reshaped to [-1, inputs]; the layer's matrix
    is its rows from `start` on.   bias: the tensor with a number for each of those rows; empty
    for a layer without.
    """

    model_config = _STRICT
    weight: str
    bias: str
    shape: Annotated[tuple[_Count, ...], Field(min_length=2)]
    inputs: _Count
    start: Annotated[int, Field(ge=0)] = 0

    @property
    def rows(self) -> int:
        """Rows of the reshaped tensor."""
        return math.prod(self.shape) // self.inputs

    @model_validator(mode="after")
    def _is_a_matrix(self) -> "Stored":
        if self.rows * self.inputs != math.prod(self.shape):
            raise ValueError("a tensor cannot be reshaped to so many inputs")
        return self


class Linear(BaseModel):
    """One linear map: W x + b, of a `torch.nn.Linear` or whatever else computes that.

    name: of the layer; its tensors are `<name>.weight`, in the given layout, and `<name>.bias`.
    stored: where they are instead.   module: path of the module whose input is the layer's; the
    name, if empty.
    """

    model_config = _STRICT
    name: str
    outputs: _Count
    bias: bool
    layout: Layout = "outputs-first"
    stored: Stored | None = None
    module: str = ""

    @model_validator(mode="after")
    def _stored_fits(self) -> "Linear":
        if self.stored is None:
            return self
        if self.layout != "outputs-first" or self.bias != bool(self.stored.bias):
            raise ValueError("what is stored elsewhere has its outputs first, and a bias or none")
        if self.stored.start + self.outputs > self.stored.rows:
            raise ValueError("a layer goes beyond the end of its tensor")
        return self

    @property
    def path(self) -> str:
        """Of the module whose input is the layer's."""
        return self.module or self.name

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of its tensors in a checkpoint: the weight, and the bias if it has one."""
        if self.stored is not None:
            weight, bias = self.stored.weight, self.stored.bias
        else:
            weight, bias = f"{self.name}.weight", f"{self.name}.bias"
        return (weight, bias) if self.bias else (weight,)

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of its tensors.   inputs: of the layer."""
        if self.stored is not None:
            shapes: list[tuple[int, ...]] = [self.stored.shape, (self.stored.rows,)]
        elif self.layout == "outputs-first":
            shapes = [(self.outputs, inputs), (self.outputs,)]
        else:
            shapes = [(inputs, self.outputs), (self.outputs,)]
        return dict(zip(self.tensors, shapes, strict=False))


class Group(BaseModel):
    """Linear layers with a common input tensor, hence one Gram matrix.

    inputs: width of the input without the bias row.   rows: what one row of it is.
    repeated: the layers run several times in a pass; their rows are those of all runs.
    parallel: what the group gets does not depend on the group before it in its block.
    expert: number of the expert that the layers are of, in a mixture.
    """

    model_config = _STRICT
    name: str
    inputs: _Count
    rows: Rows
    layers: Annotated[tuple[Linear, ...], Field(min_length=1)]
    repeated: bool = False
    parallel: bool = False
    expert: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _layers_agree(self) -> "Group":
        if (self.expert is not None) != self.rows.startswith("routed-"):
            raise ValueError("an expert gets what a router sends it, and nothing else does")
        if len({layer.bias for layer in self.layers}) != 1:
            raise ValueError("some layers have a bias and some have none")
        if any(layer.stored and layer.stored.inputs != self.inputs for layer in self.layers):
            raise ValueError("a layer is stored with another number of inputs")
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

    @model_validator(mode="after")
    def _one_rule_each(self) -> "Block":
        layers = [layer for group in self.groups for layer in group.layers]
        tensors = [mean.name for mean in self.means]
        tensors += [name for layer in layers if not layer.stored for name in layer.tensors]
        tensors += _shared([layer for layer in layers if layer.stored])
        _check_once(tensors, "tensor")
        return self

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the block, in the order of the manifest."""
        shapes = {mean.name: mean.shape for mean in self.means}
        for group in self.groups:
            for layer in group.layers:
                shapes |= layer.shapes(group.inputs)
        return shapes


class Manifest(BaseModel):
    """All blocks of a model, in forward order; no number and no group stands in it twice.

    kept: tensors that are no block's, since every owner keeps its own: a head with its labels.
    """

    model_config = _STRICT
    architecture: str
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    kept: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_rule_each(self) -> "Manifest":
        groups = [group for block in self.blocks for group in block.groups]
        merged = [name for block in self.blocks for name in block.shapes]
        _check_once([*merged, *self.kept], "tensor")
        _check_once([layer.name for group in groups for layer in group.layers], "layer")
        _check_once([group.name for group in groups], "group")
        _check_once([block.name for block in self.blocks], "block")
        return self

    @property
    def with_head_kept(self) -> "Manifest":
        """The same, but for the head, which stays with its owner."""
        *body, head = self.blocks
        return self.model_copy(update={"blocks": tuple(body), "kept": tuple(head.shapes)})

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the transformer layers, in forward order."""
        return tuple(dict.fromkeys(block.module for block in self.blocks if block.module))

    @property
    def head(self) -> Block | None:
        """What comes after the transformer layers; None if that is the embeddings once more."""
        last = self.blocks[-1]
        return None if last.module or len(self.blocks) == 1 else last

    @property
    def repeated(self) -> frozenset[str]:
        """Those of the transformer layers that run several times in a pass."""
        return frozenset(
            block.module for block in self.blocks if any(group.repeated for group in block.groups)
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that is merged."""
        return {name: shape for block in self.blocks for name, shape in block.shapes.items()}


def _check_once(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"a {what} occurs twice")


def _shared(layers: Sequence[Linear]) -> Iterator[str]:
    """The tensors that hold these layers, each of which just fills the tensors of its layers."""
    parts: dict[tuple[str, ...], list[tuple[int, int, Stored]]] = {}
    for layer in layers:
        if layer.stored is not None:
            start = layer.stored.start
            part = (start, start + layer.outputs, layer.stored)
            parts.setdefault(layer.tensors, []).append(part)
    for tensors, found in parts.items():
        found.sort(key=lambda part: part[:2])
        begins, ends = [0, *(end for _, end, _ in found)], [start for start, _, _ in found]
        shapes = {stored.shape for _, _, stored in found}
        if len(shapes) != 1 or begins != [*ends, found[0][2].rows]:
            raise ValueError(f"the layers in '{tensors[0]}' do not fill it, or overlap")
        yield from tensors
