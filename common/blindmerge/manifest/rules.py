"""Rules of an architecture, and the manifest that they make of a checkpoint's tensors.

An architecture is what comes before its layers, one or several stacks of layers, and a head.
Rules name groups of linear layers and, by a pattern, what is averaged; a tensor that no rule
names is an error.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from blindmerge.errors import CheckpointInvalid, UnknownTensor
from blindmerge.manifest.blocks import Block, Group, Layout, Linear, Manifest, Mean, Rows
from blindmerge.tasks import Task

__all__ = [
    "TEXTS",
    "Architecture",
    "GroupRule",
    "Part",
    "Shapes",
    "last_tokens",
    "manifest_of",
    "sequences",
    "tokens",
]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

TEXTS: tuple[Task, ...] = ("single-label", "multi-label", "regression")
"""What a classifier of texts can do; its config says which."""


@dataclass(frozen=True, slots=True)
class GroupRule:
    """Layers of a part with a common input; names are relative to the part's path.

    optional: a model may come without them.   layout: of their weights.
    repeated, parallel: as in `Group`.
    """

    name: str
    rows: Rows
    layers: tuple[str, ...]
    optional: bool = False
    layout: Layout = "outputs-first"
    repeated: bool = False
    parallel: bool = False


def tokens(name: str, *layers: str, **changes: Any) -> GroupRule:
    """Layers called with all tokens; the layer `name` itself if no others are given."""
    return GroupRule(name, "tokens", layers or (name,), **changes)


def sequences(*names: str) -> tuple[GroupRule, ...]:
    """Layers of a head, one after another, called with one row per text."""
    return tuple(GroupRule(name, "sequences", (name,)) for name in names)


def last_tokens(name: str) -> tuple[GroupRule, ...]:
    """A head called with all tokens, of which the last alone counts: a decoder's classifier.

    What it does to other tokens is thrown away, so they have no say in how it is merged.
    """
    return (GroupRule(name, "last-tokens", (name,)),)


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part's tensors are, and their rules.

    path: what their names begin with.   mean: pattern of the names after it that are averaged.
    """

    path: str
    groups: tuple[GroupRule, ...] = ()
    mean: str = ""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The rules of one class of models.

    tasks: what it can do; its config says which, if there are several.
    first: embeddings, and all else that is needed before the first layer.
    layers: stacks of layers in forward order; the path of each is that of a list of layers, the
        rules are those of every layer in it.
    """

    tasks: tuple[Task, ...]
    first: Part
    layers: tuple[Part, ...]
    head: Part

    def for_words(self, *names: str) -> "Architecture":
        """The same layers under the head of a tagger: `names`, called with all tokens."""
        head = Part("", tuple(tokens(name) for name in names))
        return replace(self, tasks=("token-classification",), head=head)


def manifest_of(name: str, rules: Architecture, shapes: Shapes) -> Manifest:
    """The manifest of a checkpoint of the class `name`.

    Raises CheckpointInvalid for a missing or empty tensor or layers of a group that differ, and
    UnknownTensor if a tensor has no rule.
    """
    empty = sorted(tensor for tensor, shape in shapes.items() if 0 in shape)
    if empty:
        raise CheckpointInvalid(f"the tensor '{empty[0]}' is empty: {list(shapes[empty[0]])}")
    stacks = [(part, _layers(part.path, shapes)) for part in rules.layers]
    first = _block("embeddings", rules.first, shapes)
    before = stacks[0][1][0]
    blocks = (
        first.model_copy(update={"groups": ()}),
        # Blocks of their own: embeddings are merged when their projection is regressed.
        *(Block(name=g.name, module=before, groups=(g,), means=()) for g in first.groups),
        *(
            _block(path, replace(part, path=path), shapes, module=path)
            for part, paths in stacks
            for path in paths
        ),
        _block("head", rules.head, shapes),
    )
    manifest = Manifest(architecture=name, blocks=blocks)
    _check_all_known(manifest, shapes)
    return manifest


def _check_all_known(manifest: Manifest, shapes: Shapes) -> None:
    unknown = sorted(shapes.keys() - manifest.shapes.keys())
    if unknown:
        raise UnknownTensor(
            f"no rule for the tensor '{unknown[0]}' {list(shapes[unknown[0]])} of a "
            f"{manifest.architecture}"
            + (f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""),
            hint="`blindmerge inspect MODEL` shows the rules of a supported model",
        )


def _layers(path: str, shapes: Shapes) -> Sequence[str]:
    layer = re.compile(re.escape(path) + r"\.(\d+)\.")
    count = len({match[1] for name in shapes if (match := layer.match(name))})
    if count == 0:
        raise CheckpointInvalid(f"the layers '{path}.*' are missing from the checkpoint")
    return [f"{path}.{index}" for index in range(count)]


def _block(name: str, part: Part, shapes: Shapes, module: str = "") -> Block:
    prefix = f"{part.path}." if part.path else ""
    pattern = re.compile(re.escape(prefix) + f"({part.mean})")
    means = tuple(
        Mean(name=tensor, shape=shapes[tensor])
        for tensor in sorted(shapes)
        if part.mean and pattern.fullmatch(tensor)
    )
    if part.mean and not means:
        raise CheckpointInvalid(
            f"the embeddings or norms of '{name}' are missing from the checkpoint"
        )
    rules = [rule for rule in part.groups if _occurs(prefix, rule, shapes)]
    groups = tuple(_group(prefix, rule, shapes) for rule in rules)
    return Block(name=name, module=module, groups=groups, means=means)


def _occurs(prefix: str, rule: GroupRule, shapes: Shapes) -> bool:
    return not rule.optional or any(f"{prefix}{name}.weight" in shapes for name in rule.layers)


def _group(prefix: str, rule: GroupRule, shapes: Shapes) -> Group:
    layers, inputs = [], set()
    for relative in rule.layers:
        layer, width = _linear(prefix + relative, rule.layout, shapes)
        layers.append(layer)
        inputs.add(width)
    if len(inputs) != 1 or len({layer.bias for layer in layers}) != 1:
        raise CheckpointInvalid(
            f"the layers of '{prefix}{rule.name}' differ in width or in having biases"
        )
    return Group(
        name=prefix + rule.name,
        inputs=inputs.pop(),
        rows=rule.rows,
        layers=tuple(layers),
        repeated=rule.repeated,
        parallel=rule.parallel,
    )


def _linear(name: str, layout: Layout, shapes: Shapes) -> tuple[Linear, int]:
    """A layer with tensors of its own, and its number of inputs."""
    shape = shapes.get(f"{name}.weight")
    if shape is None or len(shape) != 2:
        raise CheckpointInvalid(f"the matrix '{name}.weight' is missing from the checkpoint")
    outputs, inputs = shape if layout == "outputs-first" else reversed(shape)
    bias = shapes.get(f"{name}.bias")
    if bias is not None and bias != (outputs,):
        raise CheckpointInvalid(f"'{name}.bias' does not fit '{name}.weight'")
    return Linear(name=name, outputs=outputs, bias=bias is not None, layout=layout), inputs
