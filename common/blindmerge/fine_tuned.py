"""Whether one checkpoint was fine-tuned from another."""

import math
from collections.abc import Collection

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid

__all__ = ["check_fine_tuned"]

_MIN_COSINE = 0.5


def check_fine_tuned(own: Checkpoint, base: Checkpoint, kept: Collection[str] = ()) -> None:
    """Checks that `own` can have been fine-tuned from `base`.

    kept: tensors that are the owner's own (`Manifest.kept`), as labels then are.
    Raises CheckpointInvalid for another architecture, other tensors, other labels or label
    order, weights that point elsewhere than the base's (another pre-training), or NaN.
    """
    if own.architecture != base.architecture:
        raise CheckpointInvalid(
            f"'{own.path}' is a {own.architecture}, the base a {base.architecture}"
        )
    if kept:
        _ = own.manifest  # its head is one for its labels
    elif own.labels != base.labels:
        raise CheckpointInvalid(
            f"'{own.path}' has the labels {list(own.labels)}, the job {list(base.labels)}",
            hint="the order counts: fine-tune from the job's base checkpoint",
        )
    for name in sorted((own.shapes.keys() | base.shapes.keys()) - set(kept)):
        ours, theirs = own.shapes.get(name), base.shapes.get(name)
        if ours != theirs:
            raise CheckpointInvalid(
                f"tensor '{name}' is {_shape(ours)} in '{own.path}', {_shape(theirs)} in the base",
                hint="fine-tune from the job's base checkpoint",
            )
    _ = own.sha256  # reads every tensor, and so finds NaN; who needs the hash later has it
    cosine = _cosine(own, base)
    if cosine < _MIN_COSINE:
        raise CheckpointInvalid(
            f"'{own.path}' was not fine-tuned from the base: the cosine between their "
            f"weights is {cosine:.2f}, at least {_MIN_COSINE} is expected",
            hint="models can only be merged if they started from the same weights",
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _cosine(own: Checkpoint, base: Checkpoint) -> float:
    """Cosine between the linear weights of both; the head is new and does not count.

    Independently trained models have a cosine near 0, fine-tuning leaves it near 1.
    """
    product = own_square = base_square = 0.0
    groups = [group for block in base.manifest.blocks if block.module for group in block.groups]
    for name in sorted({layer.tensors[0] for group in groups for layer in group.layers}):
        a, b = (checkpoint.read([name])[name].ravel() for checkpoint in (own, base))
        product += float(a @ b)
        own_square += float(a @ a)
        base_square += float(b @ b)
    norms = math.sqrt(own_square) * math.sqrt(base_square)
    return product / norms if norms > 0 else 0.0
