"""What goes into the layers of a model, seen by hooks of our own on full forward passes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from blindmerge.manifest import Group
from blindmerge.statistic import Array
from blindmerge_client.batches import Batch

__all__ = ["Captured", "captured_rows"]


@dataclass(frozen=True)
class Captured:
    """The inputs of a group, float64 [n, width], with ones as last column for a bias.

    count: what a mean over them divides by; n, unless some rows are weighted.
    places: of an expert, the batch and the place in it of each token.
    """

    rows: Array
    count: int
    places: list[tuple[int, int]] = field(default_factory=list)


class _Watch:
    """The arguments of the calls of a pass, by group."""

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self.calls: dict[str, list[Sequence[Array]]] = {}
        self._handles = [
            model.get_submodule(group.layers[-1].path).register_forward_hook(self._keep(group.name))
            for group in groups
        ]

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], _output: object) -> None:
            seen = [each.double().numpy() for each in inputs]
            self.calls.setdefault(name, []).append(seen)

        return hook

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def captured_rows(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    like: Mapping[str, Captured] | None = None,
) -> dict[str, Captured]:
    """Row by row with loops over examples and lengths; padding is found by the length of a text.

    like: experts get the tokens that they get there, wherever this model sends them.
    """
    found: dict[str, list[Array]] = {group.name: [] for group in groups}
    tables: dict[str, Array] = {}
    places: dict[str, list[tuple[int, int]]] = {group.name: [] for group in groups}
    watch = _Watch(model, groups)
    model.eval()
    with torch.no_grad():
        for number, batch in enumerate(batches):
            watch.calls.clear()
            lengths = batch.inputs["attention_mask"].sum(dim=1).tolist()
            if "labels" in batch.inputs:
                targets = (batch.inputs["labels"] >= 0).sum(dim=1).tolist()
            model(**batch.inputs)
            for group in groups:
                seen = watch.calls[group.name]
                if group.rows == "tokens-and-positions":
                    tables[group.name] = seen.pop()[0][0]
                assert len(seen) == 1 or group.repeated
                if group.expert is None:
                    for inputs, *_ in seen:
                        here_lengths = targets if group.rows == "target-tokens" else lengths
                        found[group.name] += _rows(group, inputs, here_lengths)
                    continue
                given = (
                    like[group.name].places if like else _places(group, seen[0], number, lengths)
                )
                here = [place for place in given if place[0] == number]
                tokens = seen[0][0].reshape(-1, seen[0][0].shape[-1])
                found[group.name] += [_expert(model, group, tokens[place]) for _, place in here]
                places[group.name] += here
    watch.remove()
    return {
        group.name: _captured(group, found[group.name], tables.get(group.name), places[group.name])
        for group in groups
    }


def _rows(group: Group, inputs: Array, lengths: Sequence[int]) -> list[Array]:
    if inputs.ndim == 2 and group.rows == "tokens":  # texts one after another
        inputs = inputs.reshape(len(lengths), -1, inputs.shape[-1])
    rows: list[Array] = []
    for example, length in zip(inputs, lengths, strict=True):
        if group.rows == "sequences":
            rows.append(example)
        elif group.rows == "last-tokens":
            rows.append(example[length - 1])
        else:
            rows += list(example[:length])
    return rows


def _places(
    group: Group, call: Sequence[Array], number: int, lengths: Sequence[int]
) -> list[tuple[int, int]]:
    """The tokens that the router sends to the group's expert, padding left out."""
    experts, longest = call[1], len(call[1]) // len(lengths)
    return [
        (number, text * longest + token)
        for text, length in enumerate(lengths)
        for token in range(length)
        if group.expert in experts[text * longest + token]
    ]


def _expert(model: nn.Module, group: Group, token: Array) -> Array:
    if group.rows == "routed-tokens":
        return token
    stacked: Any = model.get_submodule(group.layers[0].path)
    gate, up = np.split(stacked.gate_up_proj[group.expert].double().numpy() @ token, 2)
    return np.asarray(gate / (1 + np.exp(-gate)) * up)


def _captured(
    group: Group, found: list[Array], table: Array | None, places: list[tuple[int, int]]
) -> Captured:
    rows = np.array(found).reshape(len(found), group.inputs)
    ones = [np.ones((len(rows), 1))] * group.bias
    rows = np.hstack([rows, *ones])
    if table is None:
        return Captured(rows, len(rows), places)
    # The table's rows together weigh as much as the tokens.
    positions = np.hstack([table, *([np.ones((len(table), 1))] * group.bias)])
    scaled = np.sqrt(len(rows) / len(table)) * positions
    return Captured(np.vstack([rows, scaled]), len(rows))
