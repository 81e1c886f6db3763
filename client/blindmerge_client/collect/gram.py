"""Gram matrices of the inputs of linear layers, G = X~^T X~ (Jin et al. 2023, section 3).

The model runs in eval mode without gradients; padding is no row; inputs may be passed by
position or keyword. Products are float64: those of float32 inputs are exact, and a sum
of n rows is off by at most n 2^-53 sum |x_i x_j|.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.linalg import blas
from torch import nn

from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Block, Group
from blindmerge.merge import GramEvidence
from blindmerge_client.batches import Batch
from blindmerge_client.collect.runner import BlockRunner

__all__ = ["collect_grams", "gram_hooks"]


class _Accumulator:
    """The Gram matrix of one group, and a check that its layers share one input."""

    def __init__(self, group: Group) -> None:
        self.group = group
        # Column-major, for BLAS to add to it in place; only the upper triangle is written.
        self.upper = np.zeros((group.width, group.width), order="F")
        self.rows = 0
        self.running = False
        self.mask = torch.empty(0)  # of the batch that runs
        self.calls: dict[str, torch.Tensor] = {}  # input by layer, in that batch

    def begin(self, batch: Batch) -> None:
        self.end()
        self.running = True
        self.mask = batch.inputs["attention_mask"].bool()

    def see(self, layer: str, inputs: torch.Tensor) -> None:
        """A layer of the group is called with `inputs`."""
        if layer in self.calls:
            raise CheckpointInvalid(f"the layer '{layer}' was called twice in one pass")
        first = next(iter(self.calls.values()), inputs)
        self.calls[layer] = inputs
        if len(self.calls) == 1:
            self.add(_rows(self.group, inputs.detach(), self.mask))
        elif not _same(inputs, first):
            raise CheckpointInvalid(
                f"the layers of '{self.group.name}' do not share one input",
                hint="the model's code differs from its architecture's rules",
            )

    def add(self, rows: torch.Tensor) -> None:
        """Adds rows^T rows; rows: [n, inputs]."""
        extended = np.ones((len(rows), self.group.width))
        extended[:, : self.group.inputs] = rows.numpy()
        self.upper = blas.dsyrk(
            1.0, extended.T, beta=1.0, c=self.upper, trans=0, lower=0, overwrite_c=1
        )
        self.rows += len(rows)

    def end(self) -> None:
        """Every layer was called once in the batch that ends."""
        for layer in self.group.layers if self.running else ():
            if layer.name not in self.calls:
                raise CheckpointInvalid(f"the layer '{layer.name}' was not called in a pass")
        self.running = False
        self.calls = {}

    def evidence(self) -> GramEvidence:
        self.end()
        upper = np.triu(self.upper)
        return GramEvidence(total=upper + np.triu(upper, 1).T, rows=self.rows)


def _rows(group: Group, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The rows of a batch that count: [n, inputs]."""
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


@contextmanager
def gram_hooks(model: nn.Module, groups: Sequence[Group]) -> Iterator[Mapping[str, _Accumulator]]:
    """Accumulators by group name, fed by hooks on the linear layers of `groups`.

    Call `begin(batch)` on each before a forward pass. The hooks go when the block ends.
    """
    accumulators = {group.name: _Accumulator(group) for group in groups}
    handles = []
    try:
        for group in groups:
            for layer in group.layers:
                hook = _hook(layer.name, accumulators[group.name])
                module = model.get_submodule(layer.name)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield accumulators
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: str, accumulator: _Accumulator) -> Any:
    def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        accumulator.see(layer, args[0] if args else kwargs["input"])

    return see


def collect_grams(model: nn.Module, runner: BlockRunner, block: Block) -> dict[str, GramEvidence]:
    """The Gram matrix of every group of `block`, over all batches of `runner`."""
    if not block.groups:
        return {}
    with gram_hooks(model, block.groups) as accumulators:

        def begin(batch: Batch) -> None:
            for accumulator in accumulators.values():
                accumulator.begin(batch)

        runner.run(block.module, begin)
    return {name: accumulator.evidence() for name, accumulator in accumulators.items()}
