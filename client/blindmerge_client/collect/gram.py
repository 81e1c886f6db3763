"""Gram matrices of the inputs of linear layers, and between the inputs in two models.

G = X~^T X~ (Jin et al. 2023, section 3) and H = X'~^T X~, where X' are the inputs in another
model of the same texts. Models run in eval mode without gradients. How exact the sums are is
said in `moments`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from blindmerge.manifest import Block
from blindmerge.merge import CrossGramEvidence, GramEvidence, Products
from blindmerge_client.batches import Batch
from blindmerge_client.collect.inputs import awaited, watched
from blindmerge_client.collect.moments import Cross, Gram
from blindmerge_client.collect.runner import BlockRunner

__all__ = ["collect_cross_grams", "collect_grams", "collect_merged_grams"]

_E = TypeVar("_E")


def collect_grams(
    model: nn.Module, runner: BlockRunner, block: Block, products: Products = "float64"
) -> dict[str, GramEvidence]:
    """The Gram matrix of every group of `block`, over all batches of `runner`."""
    if not block.groups:
        return {}
    # Nothing comes after the head, whose output for a language model is larger than all before.
    passes = runner.run(block.module) if block.module else runner.peek("", awaited(block.groups))
    return _over(passes, model, block, products)


def collect_merged_grams(
    merged: BlockRunner, block: Block, products: Products = "float64"
) -> dict[str, GramEvidence]:
    """The same in the model merged so far, whose `block` is still the owner's."""
    layers = awaited(block.groups)
    if not layers:
        return {}
    return _over(merged.peek(block.module, layers), merged.model, block, products)


def _over(
    passes: Iterable[Batch], model: nn.Module, block: Block, products: Products
) -> dict[str, GramEvidence]:
    device = _device(model)
    folds: dict[int, dict[str, Gram]] = {}
    with watched(model, block.groups) as inputs:
        for batch in passes:
            if batch.fold not in folds:
                folds[batch.fold] = {g.name: Gram(g, products, device) for g in block.groups}
            for name, seen in inputs.rows(batch).items():
                folds[batch.fold][name].add(seen)
    return _joined(
        [
            {name: GramEvidence(gram.total(), gram.count) for name, gram in folds[fold].items()}
            for fold in sorted(folds)
        ],
        lambda half, rest: GramEvidence(half.total + rest.total, half.rows + rest.rows, half),
    )


def collect_cross_grams(
    merged: BlockRunner, own: BlockRunner, block: Block, products: Products = "float64"
) -> dict[str, CrossGramEvidence]:
    """The moments of what every group of `block` gets in two models, batch by batch.

    merged: of the model merged so far, all that comes before the block.
    own: of the owner's model, with the same batches.
    """
    if not block.groups:
        return {}
    device = _device(merged.model)
    folds: dict[int, dict[str, tuple[Gram, Cross]]] = {}
    with watched(merged.model, block.groups) as there, watched(own.model, block.groups) as here:
        layers = awaited(block.groups)
        passes = [runner.peek(block.module, layers) for runner in (merged, own)]
        for batch, _ in zip(*passes, strict=True):
            if batch.fold not in folds:
                folds[batch.fold] = {
                    group.name: (Gram(group, products, device), Cross(group, products, device))
                    for group in block.groups
                }
            other = there.rows(batch)
            ours = here.rows(batch, there.routes)
            for name, seen in other.items():
                gram, cross = folds[batch.fold][name]
                gram.add(seen)
                cross.add(seen, ours[name])
    return _joined(
        [
            {
                name: CrossGramEvidence(gram.total(), cross.total(), gram.count)
                for name, (gram, cross) in folds[fold].items()
            }
            for fold in sorted(folds)
        ],
        lambda half, rest: CrossGramEvidence(
            half.total + rest.total, half.cross + rest.cross, half.rows + rest.rows, half
        ),
    )


def _joined(folds: Sequence[Mapping[str, _E]], join: Callable[[_E, _E], _E]) -> dict[str, _E]:
    """The sums over all folds, one or two; where there are two, they keep the first."""
    first, *rest = folds
    if not rest:
        return dict(first)
    (second,) = rest
    return {name: join(half, second[name]) for name, half in first.items()}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
