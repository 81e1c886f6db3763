"""What goes into linear layers while a model runs, seen by hooks.

Padding is no row; special tokens and every part of a word are, also in the head of a tagger,
whose loss sees first tokens of words alone. Inputs may be passed by position or keyword.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Group
from blindmerge.statistic import Array
from blindmerge_client.batches import Batch

__all__ = ["Inputs", "watched"]


class Inputs:
    """The inputs of the layers of some groups, from pass to pass."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = tuple(groups)
        self._calls: dict[str, torch.Tensor] = {}  # by layer, in the pass that runs

    def see(self, layer: str, inputs: torch.Tensor) -> None:
        """A layer is called with `inputs`."""
        if layer in self._calls:
            raise CheckpointInvalid(f"the layer '{layer}' was called twice in one pass")
        self._calls[layer] = inputs

    def rows(self, batch: Batch) -> dict[str, Array]:
        """X~ [rows, width] of every group, float64, from the pass over `batch` that just ended.

        Raises CheckpointInvalid unless every layer was called once, those of a group on one
        input, with a shape that fits the batch.
        """
        mask = batch.inputs["attention_mask"].bool()
        rows = {group.name: _extended(group, self._input(group), mask) for group in self._groups}
        self._calls = {}
        return rows

    def _input(self, group: Group) -> torch.Tensor:
        for layer in group.layers:
            if layer.name not in self._calls:
                raise CheckpointInvalid(f"the layer '{layer.name}' was not called in a pass")
        first, *others = (self._calls[layer.name] for layer in group.layers)
        if not all(_same(first, other) for other in others):
            raise CheckpointInvalid(
                f"the layers of '{group.name}' do not share one input",
                hint="the model's code differs from its architecture's rules",
            )
        return first


@contextmanager
def watched(model: nn.Module, groups: Sequence[Group]) -> Iterator[Inputs]:
    """Hooks on the layers of `groups`, which go when the block ends."""
    inputs = Inputs(groups)
    handles = []
    try:
        for layer in (layer for group in groups for layer in group.layers):
            module = model.get_submodule(layer.name)
            hook = _hook(layer.name, inputs)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: str, inputs: Inputs) -> Any:
    def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.see(layer, args[0] if args else kwargs["input"])

    return see


def _extended(group: Group, inputs: torch.Tensor, mask: torch.Tensor) -> Array:
    """The rows that count, with ones for a bias."""
    rows = _rows(group, inputs.detach(), mask)
    extended = np.empty((len(rows), group.width))
    extended[:, : group.inputs] = rows.numpy()
    extended[:, group.inputs :] = 1.0
    return extended


def _rows(group: Group, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if group.rows == "sequences" and inputs.shape[:-1] == mask.shape[:1]:
        return inputs
    if group.rows == "tokens" and inputs.shape[:-1] == mask.shape:
        return inputs[mask]
    raise CheckpointInvalid(
        f"the input of '{group.name}' has the shape {list(inputs.shape)}, "
        f"which does not fit rows of {group.rows}"
    )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
