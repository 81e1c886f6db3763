"""Merged tensors in a model that is in memory, where some have other names than in a file."""

from typing import Any

import numpy as np
import torch
from torch import nn

from blindmerge.checkpoint import Tensors
from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Block
from blindmerge_client.collect.experts import put_expert

__all__ = ["put_merged"]


def put_merged(model: nn.Module, block: Block, tensors: Tensors) -> None:
    """Copies the tensors of a merged block into `model`.

    Raises CheckpointInvalid for one that has no place there: it would be merged and not be used.
    """
    state = model.state_dict()
    rest = {name: _torch(tensor) for name, tensor in tensors.items()}
    for name in sorted(rest.keys() & state.keys()):
        state[name].copy_(rest.pop(name))
    for group in block.groups:
        for layer in group.layers if group.expert is None else ():
            for name in [name for name in layer.tensors if name in rest]:
                target = f"{layer.path}.{name.rpartition('.')[2]}"
                if target in state:
                    state[target].copy_(rest.pop(name))
        names = [layer.tensors[0] for layer in group.layers]
        if group.expert is not None and rest.keys() >= set(names):
            mixture = model.get_submodule(group.layers[0].path)
            put_expert(group, mixture, [rest.pop(name) for name in names])
    for name in [name for name in rest if _moved(block, name) in state]:
        state[_moved(block, name)].copy_(rest.pop(name))
    if rest:
        raise CheckpointInvalid(f"the model in memory has no place for '{min(rest)}'")


def _moved(block: Block, name: str) -> str:
    """What else of a transformer layer is called where the list of layers has another path."""
    number = block.module.rpartition(".")[2]
    return f"{block.module}.{name.partition(f'.{number}.')[2]}" if number else name


def _torch(tensor: Any) -> torch.Tensor:
    # The model computes in float32, whatever the checkpoint is written in.
    return torch.from_numpy(np.ascontiguousarray(tensor, np.float32))
