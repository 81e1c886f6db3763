"""What goes into the layers of a model, seen by hooks of our own on full forward passes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from blindmerge.manifest import Group
from blindmerge.statistic import Array
from blindmerge_client.batches import Batch

__all__ = ["captured_rows"]


def captured_rows(
    model: nn.Module, groups: Sequence[Group], batches: Sequence[Batch]
) -> dict[str, Array]:
    """The inputs of each group, float64 [rows, width], with ones as last column for a bias.

    Row by row with loops over examples and lengths; padding is found by the length of a text.
    """
    rows: dict[str, list[Array]] = {group.name: [] for group in groups}
    lengths: list[int] = []

    def keep(group: Group) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
            for example, length in zip(inputs[0].double().numpy(), lengths, strict=True):
                rows[group.name] += list(example[:length]) if example.ndim == 2 else [example]

        return hook

    handles = [
        model.get_submodule(group.layers[-1].name).register_forward_hook(keep(group))
        for group in groups
    ]
    model.eval()
    with torch.no_grad():
        for batch in batches:
            lengths[:] = batch.inputs["attention_mask"].sum(dim=1).tolist()
            model(**batch.inputs)
    for handle in handles:
        handle.remove()
    return {
        group.name: np.array([[*row, 1.0] if group.bias else row for row in rows[group.name]])
        for group in groups
    }
