"""Gram matrices of the inputs of linear layers, and between the inputs in two models.

G = X~^T X~ (Jin et al. 2023, section 3) and H = X'~^T X~, where X' are the inputs in another
model of the same texts. Models run in eval mode without gradients. Products are float64: those
of float32 inputs are exact, and a sum of n rows is off by at most n 2^-53 sum |x_i x_j|.
"""

from collections.abc import Iterable

import numpy as np
from scipy.linalg import blas
from torch import nn

from blindmerge.manifest import Block
from blindmerge.merge import CrossGramEvidence, GramEvidence
from blindmerge.statistic import Array
from blindmerge_client.batches import Batch
from blindmerge_client.collect.inputs import Seen, awaited, watched
from blindmerge_client.collect.runner import BlockRunner

__all__ = ["collect_cross_grams", "collect_grams", "collect_merged_grams"]


class _Gram:
    """X~^T X~ of one group."""

    def __init__(self, width: int) -> None:
        # Column-major, for BLAS to add to it in place; only the upper triangle is written.
        self._upper = np.zeros((width, width), order="F")
        self.rows = 0

    def add(self, seen: Seen) -> None:
        """Adds the rows of a pass."""
        self._upper = blas.dsyrk(
            1.0, seen.rows.T, beta=1.0, c=self._upper, trans=0, lower=0, overwrite_c=1
        )
        self.rows += seen.count

    def total(self) -> Array:
        """The whole symmetric matrix."""
        upper = np.triu(self._upper)
        return np.asarray(upper + np.triu(upper, 1).T)


def collect_grams(model: nn.Module, runner: BlockRunner, block: Block) -> dict[str, GramEvidence]:
    """The Gram matrix of every group of `block`, over all batches of `runner`."""
    return _over(runner.run(block.module), model, block) if block.groups else {}


def collect_merged_grams(merged: BlockRunner, block: Block) -> dict[str, GramEvidence]:
    """The same in the model merged so far, whose `block` is still the owner's."""
    layers = awaited(block.groups)
    return _over(merged.peek(block.module, layers), merged.model, block) if layers else {}


def _over(passes: Iterable[Batch], model: nn.Module, block: Block) -> dict[str, GramEvidence]:
    grams = {group.name: _Gram(group.width) for group in block.groups}
    with watched(model, block.groups) as inputs:
        for batch in passes:
            for name, seen in inputs.rows(batch).items():
                grams[name].add(seen)
    return {name: GramEvidence(gram.total(), gram.rows) for name, gram in grams.items()}


def collect_cross_grams(
    merged: BlockRunner, own: BlockRunner, block: Block
) -> dict[str, CrossGramEvidence]:
    """The moments of what every group of `block` gets in two models, batch by batch.

    merged: of the model merged so far, all that comes before the block.
    own: of the owner's model, with the same batches.
    """
    if not block.groups:
        return {}
    grams = {group.name: _Gram(group.width) for group in block.groups}
    crosses = {g.name: np.zeros((g.width, g.width), order="F") for g in block.groups}
    with watched(merged.model, block.groups) as there, watched(own.model, block.groups) as here:
        layers = awaited(block.groups)
        passes = [runner.peek(block.module, layers) for runner in (merged, own)]
        for batch, _ in zip(*passes, strict=True):
            other, ours = there.rows(batch), here.rows(batch)
            for name, seen in other.items():
                grams[name].add(seen)
                rows, own_rows = seen.rows.T, ours[name].rows.T
                crosses[name] = blas.dgemm(
                    1.0, rows, own_rows, trans_b=1, beta=1.0, c=crosses[name], overwrite_c=1
                )
    return {
        name: CrossGramEvidence(gram.total(), np.ascontiguousarray(crosses[name]), gram.rows)
        for name, gram in grams.items()
    }
