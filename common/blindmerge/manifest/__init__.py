"""The parameter manifest: every tensor of a model has exactly one rule.

It is made from the names and shapes in a checkpoint alone, before any data is read, and is
part of the plan. Blocks stand in forward order: one for the embeddings, one per transformer
layer, one for the head; a merge method may cut them further. Within a block, linear layers with
a common input form a group, since they share one Gram matrix.

Each file of `architectures` holds the rules of one family of models.
"""

from collections.abc import Mapping
from typing import Any

from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest.architectures import ARCHITECTURES
from blindmerge.manifest.blocks import Block, Group, Linear, Manifest, Mean, Rows, Stored
from blindmerge.manifest.rules import Architecture, Shapes, manifest_of
from blindmerge.tasks import Task

__all__ = [
    "ARCHITECTURES",
    "Block",
    "Group",
    "Linear",
    "Manifest",
    "Mean",
    "Rows",
    "Stored",
    "describe",
    "head_layers",
    "task_of",
]


_PROBLEMS: Mapping[object, Task] = {
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}
"""Tasks by `problem_type`, which transformers writes into the config of a classifier of texts."""


def task_of(architecture: str, config: Mapping[str, Any]) -> Task:
    """What a model of this class with this config does.

    Raises CheckpointInvalid if there are no rules for it.
    """
    tasks = _rules(architecture).tasks
    # As transformers does, a head with one output is one for numbers, unless the config says else.
    otherwise: Task = "regression" if len(config.get("id2label") or ()) == 1 else tasks[0]
    task = _PROBLEMS.get(config.get("problem_type"), otherwise)
    return task if task in tasks else tasks[0]


def head_layers(architecture: str) -> frozenset[str]:
    """The names that weights and biases of a head's layers can have.

    Raises CheckpointInvalid if there are no rules for the architecture.
    """
    head = _rules(architecture).head
    names = [layer for rule in head.groups for layer in rule.layers]
    prefix = f"{head.path}." if head.path else ""
    return frozenset(f"{prefix}{name}.{part}" for name in names for part in ("weight", "bias"))


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
