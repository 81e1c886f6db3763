"""What goes into the layers of a model, seen by hooks of our own on full forward passes."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    rows: Array
    count: int


def captured_rows(
    model: nn.Module, groups: Sequence[Group], batches: Sequence[Batch]
) -> dict[str, Captured]:
    """Row by row with loops over examples and lengths; padding is found by the length of a text."""
    found: dict[str, list[Array]] = {group.name: [] for group in groups}
    tables: dict[str, Array] = {}
    calls: dict[str, list[Array]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
            calls.setdefault(name, []).append(inputs[0].double().numpy())

        return hook

    handles = [
        model.get_submodule(group.layers[-1].name).register_forward_hook(keep(group.name))
        for group in groups
    ]
    model.eval()
    with torch.no_grad():
        for batch in batches:
            calls.clear()
            lengths = batch.inputs["attention_mask"].sum(dim=1).tolist()
            model(**batch.inputs)
            for group in groups:
                seen = calls[group.name]
                if group.rows == "tokens-and-positions":
                    tables[group.name] = seen.pop()[0]
                assert len(seen) == 1 or group.repeated
                for inputs in seen:
                    found[group.name] += _rows(group, inputs, lengths)
    for handle in handles:
        handle.remove()
    return {
        group.name: _captured(group, np.array(found[group.name]), tables.get(group.name))
        for group in groups
    }


def _rows(group: Group, inputs: Array, lengths: Sequence[int]) -> list[Array]:
    rows: list[Array] = []
    for example, length in zip(inputs, lengths, strict=True):
        if group.rows == "sequences":
            rows.append(example)
        elif group.rows == "last-tokens":
            rows.append(example[length - 1])
        else:
            rows += list(example[:length])
    return rows


def _captured(group: Group, rows: Array, table: Array | None) -> Captured:
    ones = [np.ones((len(rows), 1))] * group.bias
    rows = np.hstack([rows, *ones])
    if table is None:
        return Captured(rows, len(rows))
    # The table's rows together weigh as much as the tokens.
    positions = np.hstack([table, *([np.ones((len(table), 1))] * group.bias)])
    scaled = np.sqrt(len(rows) / len(table)) * positions
    return Captured(np.vstack([rows, scaled]), len(rows))
