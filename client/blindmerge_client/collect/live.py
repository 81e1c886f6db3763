"""The tensors of a checkpoint in a model that is in memory, where some have other names."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from blindmerge.checkpoint import Tensors
from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Block
from blindmerge_client.collect.experts import stacked_name

__all__ = ["Place", "places", "put_merged"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a model a tensor is: a tensor of the model's own, or an expert's rows of one.

    name: of the model's tensor.   expert: its number in a mixture.   start, stop: its rows there.
    """

    name: str
    expert: int | None = None
    start: int = 0
    stop: int = 0

    def of(self, whole: Any) -> Any:
        """The part of `whole`, the model's tensor or an array of its shape. A view."""
        return whole if self.expert is None else whole[self.expert][self.start : self.stop]


def places(block: Block, names: Iterable[str], own: Container[str]) -> dict[str, Place]:
    """Where the named tensors of a block are.   own: the names of the model's tensors.

    Raises CheckpointInvalid for one that has no place there: it would be merged and not be used.
    """
    elsewhere = dict(_elsewhere(block))
    found = {}
    for name in sorted(names):
        choices = (Place(name), elsewhere.get(name), Place(_moved(block, name)))
        place = next((each for each in choices if each and each.name in own), None)
        if place is None:
            raise CheckpointInvalid(f"the model in memory has no place for '{name}'")
        found[name] = place
    return found


def put_merged(model: nn.Module, block: Block, tensors: Tensors) -> None:
    """Copies the tensors of a merged block into `model`.   Raises CheckpointInvalid, see above."""
    state = model.state_dict()
    for name, place in places(block, tensors, state).items():
        place.of(state[place.name]).copy_(_torch(tensors[name]))


def _elsewhere(block: Block) -> Iterator[tuple[str, Place]]:
    """What the module of a layer calls its tensors, and where a mixture has its experts'."""
    for group in block.groups:
        start = 0
        for layer in group.layers:
            if group.expert is None:
                for name in layer.tensors:
                    yield name, Place(f"{layer.path}.{name.rpartition('.')[2]}")
            else:
                stop = start + layer.outputs
                whole = f"{layer.path}.{stacked_name(group)}"
                yield layer.tensors[0], Place(whole, group.expert, start, stop)
                start = stop


def _moved(block: Block, name: str) -> str:
    """What else of a transformer layer is called where the list of layers has another path."""
    number = block.module.rpartition(".")[2]
    return f"{block.module}.{name.partition(f'.{number}.')[2]}" if number else name


def _torch(tensor: Any) -> torch.Tensor:
    # The model computes in float32, whatever the checkpoint is written in.
    return torch.from_numpy(np.ascontiguousarray(tensor, np.float32))
