"""The parameter manifest: every tensor of a model has exactly one rule.

It is made from the names and shapes in a checkpoint alone, before any data is read, and is
part of the plan. Blocks stand in forward order: one for the embeddings, one per transformer
layer, one for the head; a merge method may cut them further. Within a block, linear layers with
a common input form a group, since they share one Gram matrix.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blindmerge.errors import CheckpointInvalid, UnknownTensor

__all__ = [
    "ARCHITECTURES",
    "Block",
    "Group",
    "Linear",
    "Manifest",
    "Mean",
    "Task",
    "describe",
    "task_of",
]

Task: TypeAlias = Literal["single-label", "token-classification"]
"""What a model does: one label for every text, or one tag for every word of it."""
Rows: TypeAlias = Literal["tokens", "sequences"]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

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

    module: path of the transformer layer that the block is, or is a part of; empty for the
    embeddings and the head.
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
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model."""
        return {name: shape for block in self.blocks for name, shape in block.shapes.items()}


class _GroupRule(BaseModel):
    """Which layers of a block share an input; names are relative to the block."""

    model_config = _STRICT
    name: str
    rows: Rows
    layers: tuple[str, ...]


class _Encoder(BaseModel):
    """The rules of an encoder; LayerNorms and embeddings are found by their names (`mean`)."""

    model_config = _STRICT
    embeddings: str
    layers: str
    layer_groups: tuple[_GroupRule, ...]
    mean: str


class _Architecture(BaseModel):
    """The rules of one architecture: an encoder with a head."""

    model_config = _STRICT
    task: Task
    encoder: _Encoder
    head_groups: tuple[_GroupRule, ...]


def _tokens(name: str, *layers: str) -> _GroupRule:
    return _GroupRule(name=name, rows="tokens", layers=layers or (name,))


def _texts(encoder: _Encoder, *layers: str) -> _Architecture:
    head = tuple(_GroupRule(name=name, rows="sequences", layers=(name,)) for name in layers)
    return _Architecture(task="single-label", encoder=encoder, head_groups=head)


def _words(encoder: _Encoder) -> _Architecture:
    head = (_tokens("classifier"),)
    return _Architecture(task="token-classification", encoder=encoder, head_groups=head)


_BERT_LAYER = (
    _tokens("attention.self", *(f"attention.self.{part}" for part in ("query", "key", "value"))),
    _tokens("attention.output.dense"),
    _tokens("intermediate.dense"),
    _tokens("output.dense"),
)
_DISTILBERT_LAYER = (
    _tokens("attention", *(f"attention.{part}" for part in ("q_lin", "k_lin", "v_lin"))),
    _tokens("attention.out_lin"),
    _tokens("ffn.lin1"),
    _tokens("ffn.lin2"),
)
_BERT_MEAN = r"(\w+_embeddings\.weight|(.*\.)?LayerNorm\.(weight|bias))"

_BERT = _Encoder(
    embeddings="bert.embeddings",
    layers="bert.encoder.layer",
    layer_groups=_BERT_LAYER,
    mean=_BERT_MEAN,
)
_ROBERTA = _Encoder(
    embeddings="roberta.embeddings",
    layers="roberta.encoder.layer",
    layer_groups=_BERT_LAYER,
    mean=_BERT_MEAN,
)
_DISTILBERT = _Encoder(
    embeddings="distilbert.embeddings",
    layers="distilbert.transformer.layer",
    layer_groups=_DISTILBERT_LAYER,
    mean=r"(\w+_embeddings\.weight|LayerNorm\.(weight|bias)"
    r"|(sa_layer_norm|output_layer_norm)\.(weight|bias))",
)

# A literal table: MiniLM checkpoints are BERT's.
ARCHITECTURES: Mapping[str, _Architecture] = {
    "BertForSequenceClassification": _texts(_BERT, "bert.pooler.dense", "classifier"),
    "RobertaForSequenceClassification": _texts(_ROBERTA, "classifier.dense", "classifier.out_proj"),
    "DistilBertForSequenceClassification": _texts(_DISTILBERT, "pre_classifier", "classifier"),
    "BertForTokenClassification": _words(_BERT),
    "RobertaForTokenClassification": _words(_ROBERTA),
    "DistilBertForTokenClassification": _words(_DISTILBERT),
}


def task_of(architecture: str) -> Task:
    """What models of this class do. Raises CheckpointInvalid if there are no rules for it."""
    return _rules(architecture).task


def _rules(architecture: str) -> _Architecture:
    rules = ARCHITECTURES.get(architecture)
    if rules is None:
        raise CheckpointInvalid(
            f"no rules for the architecture '{architecture}'",
            hint=f"supported: {', '.join(sorted(ARCHITECTURES))}",
        )
    return rules


def describe(architecture: str, shapes: Shapes) -> Manifest:
    """The manifest of a checkpoint.

    architecture: the class that loads it, as in `config.json`.   shapes: of all its tensors.
    Raises CheckpointInvalid for an architecture without rules, a missing or empty tensor or
    layers of a group that differ, and UnknownTensor if a tensor has no rule.
    """
    rules = _rules(architecture)
    encoder = rules.encoder
    empty = sorted(name for name, shape in shapes.items() if 0 in shape)
    if empty:
        raise CheckpointInvalid(f"the tensor '{empty[0]}' is empty: {list(shapes[empty[0]])}")
    layer = re.compile(re.escape(encoder.layers) + r"\.(\d+)\.")
    count = len({match[1] for name in shapes if (match := layer.match(name))})
    if count == 0:
        raise CheckpointInvalid(f"the layers '{encoder.layers}.*' are missing from the checkpoint")
    paths = [f"{encoder.layers}.{index}" for index in range(count)]
    blocks = (
        _block("embeddings", encoder.embeddings, (), encoder.mean, shapes),
        *(_block(path, path, encoder.layer_groups, encoder.mean, shapes) for path in paths),
        _block("head", "", rules.head_groups, r"(?!)", shapes),
    )
    for block in blocks[:-1]:
        if not block.means:
            raise CheckpointInvalid(
                f"the embeddings or LayerNorms of '{block.name}' are missing from the checkpoint"
            )
    manifest = Manifest(architecture=architecture, blocks=blocks)
    unknown = sorted(shapes.keys() - manifest.shapes.keys())
    if unknown:
        raise UnknownTensor(
            f"no rule for the tensor '{unknown[0]}' {list(shapes[unknown[0]])} of a "
            f"{architecture}" + (f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""),
            hint="`blindmerge inspect MODEL` shows the rules of a supported model",
        )
    return manifest


def _block(
    name: str, path: str, groups: tuple[_GroupRule, ...], mean: str, shapes: Shapes
) -> Block:
    prefix = f"{path}." if path else ""
    pattern = re.compile(re.escape(prefix) + mean)
    return Block(
        name=name,
        module=path if groups and path else "",
        groups=tuple(_group(prefix, rule, shapes) for rule in groups),
        means=tuple(
            Mean(name=tensor, shape=shapes[tensor])
            for tensor in sorted(shapes)
            if pattern.fullmatch(tensor)
        ),
    )


def _group(prefix: str, rule: _GroupRule, shapes: Shapes) -> Group:
    layers, inputs, biases = [], set(), set()
    for relative in rule.layers:
        name = prefix + relative
        shape = shapes.get(f"{name}.weight")
        if shape is None or len(shape) != 2:
            raise CheckpointInvalid(f"the matrix '{name}.weight' is missing from the checkpoint")
        bias = shapes.get(f"{name}.bias")
        if bias is not None and bias != (shape[0],):
            raise CheckpointInvalid(f"'{name}.bias' does not fit '{name}.weight'")
        layers.append(Linear(name=name, outputs=shape[0], bias=bias is not None))
        inputs.add(shape[1])
        biases.add(bias is not None)
    if len(inputs) != 1 or len(biases) != 1:
        raise CheckpointInvalid(
            f"the layers of '{prefix}{rule.name}' differ in width or in having biases"
        )
    return Group(name=prefix + rule.name, inputs=inputs.pop(), rows=rule.rows, layers=tuple(layers))
