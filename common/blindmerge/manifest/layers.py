"""Linear layers as they are found among a checkpoint's tensors: alone, or as experts."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest.blocks import Group, Layout, Linear, Rows, Stored

__all__ = ["Experts", "Shapes", "convolution", "experts_of", "linear"]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def linear(name: str, layout: Layout, shapes: Shapes) -> tuple[Linear, int]:
    """A layer with tensors of its own, and its number of inputs.   Raises CheckpointInvalid."""
    shape = shapes.get(f"{name}.weight")
    if shape is None or len(shape) != 2:
        raise CheckpointInvalid(f"the matrix '{name}.weight' is missing from the checkpoint")
    outputs, inputs = shape if layout == "outputs-first" else reversed(shape)
    bias = shapes.get(f"{name}.bias")
    if bias is not None and bias != (outputs,):
        raise CheckpointInvalid(f"'{name}.bias' does not fit '{name}.weight'")
    return Linear(name=name, outputs=outputs, bias=bias is not None, layout=layout), inputs


def convolution(name: str, shapes: Shapes) -> tuple[Linear, int]:
    """A convolution [outputs, channels, height, width] as a layer over unfolded patches.

    Raises CheckpointInvalid.
    """
    shape = shapes.get(f"{name}.weight")
    if shape is None or len(shape) != 4:
        raise CheckpointInvalid(f"the convolution '{name}.weight' is missing from the checkpoint")
    bias = shapes.get(f"{name}.bias")
    if bias is not None and bias != shape[:1]:
        raise CheckpointInvalid(f"'{name}.bias' does not fit '{name}.weight'")
    inputs = math.prod(shape[1:])
    stored = Stored(
        weight=f"{name}.weight", bias=f"{name}.bias" if bias else "", shape=shape, inputs=inputs
    )
    return Linear(name=name, outputs=shape[0], bias=bias is not None, stored=stored), inputs


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a mixture: y = down(act(gate(x)) * up(x)); names are relative to the part's.

    A checkpoint has them one by one, `<path>.<number>.<name>`, or stacked as the module has them.
    names: of gate, up and down.   module: path of the one module that computes all of them.
    """

    path: str
    names: tuple[str, str, str]
    module: str


def experts_of(prefix: str, rule: Experts, shapes: Shapes) -> Iterator[Group]:
    """The groups of all experts: first those that get tokens, then those of the last layers.

    None if the model has no such experts.   Raises CheckpointInvalid if one lacks a layer.
    """
    found = _stacked(prefix, rule, shapes) or _single(prefix, rule, shapes)
    for expert, (first, _) in enumerate(found):
        yield _expert(prefix, rule, "routed-tokens", expert, first)
    for expert, (_, last) in enumerate(found):
        yield _expert(prefix, rule, "routed-activations", expert, last)


_Layers: TypeAlias = tuple[list[tuple[Linear, int]], list[tuple[Linear, int]]]
"""The first and the last layers of an expert, each with its number of inputs."""


def _single(prefix: str, rule: Experts, shapes: Shapes) -> Sequence[_Layers]:
    """Experts with tensors of their own, by number."""
    pattern = re.compile(re.escape(prefix + rule.path) + r"\.(\d+)\.")
    count = len({match[1] for name in shapes if (match := pattern.match(name))})
    gate, up, down = rule.names
    return [
        (
            [linear(f"{prefix}{rule.path}.{e}.{n}", "outputs-first", shapes) for n in (gate, up)],
            [linear(f"{prefix}{rule.path}.{e}.{down}", "outputs-first", shapes)],
        )
        for e in range(count)
    ]


def _stacked(prefix: str, rule: Experts, shapes: Shapes) -> Sequence[_Layers]:
    """Experts as slices of the module's two tensors [experts, outputs, inputs]."""
    names = [f"{prefix}{rule.module}.{name}" for name in ("gate_up_proj", "down_proj")]
    first, last = (shapes.get(name) for name in names)
    if first is None and last is None:
        return []
    if first is None or last is None or len(first) != 3 or len(last) != 3 or first[0] != last[0]:
        raise CheckpointInvalid(f"'{names[0]}' and '{names[1]}' are not tensors of one mixture")

    def part(name: str, shape: tuple[int, ...], expert: int) -> tuple[Linear, int]:
        path, _, kind = name.rpartition(".")
        _, outputs, inputs = shape
        stored = Stored(weight=name, bias="", shape=shape, inputs=inputs, start=expert * outputs)
        layer = Linear(name=f"{path}.{expert}.{kind}", outputs=outputs, bias=False, stored=stored)
        return layer, inputs

    return [
        ([part(names[0], first, expert)], [part(names[1], last, expert)])
        for expert in range(first[0])
    ]


def _expert(
    prefix: str, rule: Experts, rows: Rows, expert: int, layers: Sequence[tuple[Linear, int]]
) -> Group:
    name = f"{prefix}{rule.path}.{expert}"
    if len({inputs for _, inputs in layers}) != 1 or any(layer.bias for layer, _ in layers):
        raise CheckpointInvalid(f"the layers of '{name}' differ in width, or have biases")
    return Group(
        name=name if rows == "routed-tokens" else f"{name}.activations",
        inputs=layers[0][1],
        rows=rows,
        layers=tuple(
            layer.model_copy(update={"module": prefix + rule.module}) for layer, _ in layers
        ),
        # Beside the router and the other experts; the last layers come in a step of their own.
        parallel=rows == "routed-tokens" or expert > 0,
        expert=expert,
    )
