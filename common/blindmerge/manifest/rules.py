"""Rules of an architecture, and the manifest that they make of a checkpoint's tensors.

An architecture is what comes before its layers, one or several stacks of layers, and a head.
Rules name groups of linear layers and, by a pattern, what is averaged; a tensor that no rule
names is an error.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blindmerge.errors import CheckpointInvalid, UnknownTensor
from blindmerge.manifest.blocks import Block, Group, Layout, Manifest, Mean, Rows
from blindmerge.manifest.layers import Experts, Shapes, convolution, experts_of, linear
from blindmerge.tasks import Task

__all__ = [
    "TEXTS",
    "Architecture",
    "Experts",
    "GroupRule",
    "Part",
    "Shapes",
    "last_tokens",
    "manifest_of",
    "patches",
    "sequences",
    "tokens",
]

TEXTS: tuple[Task, ...] = ("single-label", "multi-label", "regression")
"""What a classifier of texts can do; its config says which."""


@dataclass(frozen=True, slots=True)
class GroupRule:
    """Layers of a part with a common input; names are relative to the part's path.

    optional: a model may come without them, or without some of them.   layout: of their weights.
    repeated, parallel: as in `Group`.   module: of the one layer, if it is not called as that is.
    """

    name: str
    rows: Rows
    layers: tuple[str, ...]
    optional: bool = False
    layout: Layout = "outputs-first"
    repeated: bool = False
    parallel: bool = False
    module: str = ""


def tokens(name: str, *layers: str, **changes: Any) -> GroupRule:
    """Layers called with all tokens; the layer `name` itself if no others are given."""
    return GroupRule(name, "tokens", layers or (name,), **changes)


def sequences(*names: str) -> tuple[GroupRule, ...]:
    """Layers of a head, one after another, called with one row per text."""
    return tuple(GroupRule(name, "sequences", (name,)) for name in names)


def patches(name: str, *layers: str) -> GroupRule:
    """Layers called with all patches of images; the layer `name` itself if no others are given."""
    return GroupRule(name, "patches", layers or (name,))


def last_tokens(name: str) -> tuple[GroupRule, ...]:
    """A head called with all tokens, of which the last alone counts: a decoder's classifier.

    What it does to other tokens is thrown away, so they have no say in how it is merged.
    """
    return (GroupRule(name, "last-tokens", (name,)),)


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part's tensors are, and their rules.

    path: what their names begin with.   mean: pattern of the names after it that are averaged.
    experts: come after the groups.   last: what runs beside the last layers of the experts.
    module: path of the list of layers in memory, if it is not that in a checkpoint; layers then
        have the names there that `renamed` says.
    """

    path: str
    groups: tuple[GroupRule, ...] = ()
    mean: str = ""
    experts: Experts | None = None
    last: tuple[GroupRule, ...] = ()
    module: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)


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

    def for_language(self) -> "Architecture":
        """The same layers as a language model.

        Where its output layer is one tensor with the embeddings, that is merged as they are.
        """
        head = Part("", (tokens("lm_head", optional=True),))
        return replace(self, tasks=("causal-lm",), head=head)


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
    before = _in_memory(rules.layers[0], stacks[0][1][0])
    blocks = (
        first.model_copy(update={"groups": ()}),
        # Blocks of their own: embeddings are merged when their projection is regressed.
        *(Block(name=g.name, module=before, groups=(g,), means=()) for g in first.groups),
        *(
            _block(path, replace(part, path=path), shapes, module=_in_memory(part, path))
            for part, paths in stacks
            for path in paths
        ),
        *(head for head in [_block("head", rules.head, shapes)] if head.shapes),
    )
    manifest = Manifest(architecture=name, blocks=blocks)
    _check_all_known(manifest, shapes)
    return manifest


def _check_all_known(manifest: Manifest, shapes: Shapes) -> None:
    unknown = sorted(shapes.keys() - manifest.shapes.keys())
    if unknown:
        module = unknown[0].rpartition(".")[0]
        raise UnknownTensor(
            f"no rule for the tensor '{unknown[0]}' {list(shapes[unknown[0]])} of a "
            f"{manifest.architecture}"
            + (f", a parameter of the module '{module}'" if module else "")
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
    groups = [
        *_groups(prefix, part, module, shapes),
        *(experts_of(prefix, part.experts, shapes) if part.experts else ()),
        *_groups(prefix, replace(part, groups=part.last), module, shapes),
    ]
    return Block(name=name, module=module, groups=tuple(groups), means=means)


def _in_memory(part: Part, path: str) -> str:
    """Where the layer at `path` of a checkpoint is in a model."""
    return f"{part.module}.{path.rpartition('.')[2]}" if part.module else path


def _groups(prefix: str, part: Part, module: str, shapes: Shapes) -> Iterator[Group]:
    for rule in part.groups:
        if _occurs(prefix, rule, shapes):
            group = _group(prefix, rule, shapes)
            yield _moved(group, prefix, part, module) if part.module else group


def _moved(group: Group, prefix: str, part: Part, module: str) -> Group:
    """The same with the paths of its layers in memory."""
    names = [layer.name.removeprefix(prefix) for layer in group.layers]
    layers = tuple(
        layer.model_copy(update={"module": f"{module}.{part.renamed.get(name, name)}"})
        for layer, name in zip(group.layers, names, strict=True)
    )
    return group.model_copy(update={"layers": layers})


def _occurs(prefix: str, rule: GroupRule, shapes: Shapes) -> bool:
    return not rule.optional or any(f"{prefix}{name}.weight" in shapes for name in rule.layers)


def _group(prefix: str, rule: GroupRule, shapes: Shapes) -> Group:
    layers, inputs = [], set()
    for relative in rule.layers:
        if rule.optional and f"{prefix}{relative}.weight" not in shapes:
            continue
        if rule.rows == "unfolded-patches":
            layer, width = convolution(prefix + relative, shapes)
        else:
            layer, width = linear(prefix + relative, rule.layout, shapes)
        if rule.module:
            layer = layer.model_copy(update={"module": prefix + rule.module})
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
