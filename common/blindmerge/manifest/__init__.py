"""The parameter manifest: every tensor of a model has exactly one rule.

It is made from the names and shapes in a checkpoint alone, before any data is read, and is
part of the plan. Blocks stand in forward order: one for the embeddings, one per transformer
layer, one for the head; a merge method may cut them further. Within a block, linear layers with
a common input form a group, since they share one Gram matrix.

Each file of `architectures` holds the rules of one family of models.
"""

from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest.architectures import ARCHITECTURES
from blindmerge.manifest.blocks import Block, Group, Linear, Manifest, Mean, Rows, Task
from blindmerge.manifest.rules import Architecture, Shapes, manifest_of

__all__ = [
    "ARCHITECTURES",
    "Block",
    "Group",
    "Linear",
    "Manifest",
    "Mean",
    "Rows",
    "Task",
    "describe",
    "task_of",
]


def task_of(architecture: str) -> Task:
    """What models of this class do. Raises CheckpointInvalid if there are no rules for it."""
    return _rules(architecture).task


def describe(architecture: str, shapes: Shapes) -> Manifest:
    """The manifest of a checkpoint.

    architecture: the class that loads it, as in `config.json`.   shapes: of all its tensors.
    Raises CheckpointInvalid for an architecture without rules, a missing or empty tensor or
    layers of a group that differ, and UnknownTensor if a tensor has no rule.
    """
    return manifest_of(architecture, _rules(architecture), shapes)


def _rules(architecture: str) -> Architecture:
    rules = ARCHITECTURES.get(architecture)
    if rules is None:
        raise CheckpointInvalid(
            f"no rules for the architecture '{architecture}'",
            hint=f"supported: {', '.join(sorted(ARCHITECTURES))}",
        )
    return rules
