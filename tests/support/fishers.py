"""When a diagonal Fisher is the one expected."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from blindmerge.manifest import Manifest
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.batches import Batch
from blindmerge_client.collect.fisher import collect_fisher, read_fisher

__all__ = ["as_in_file", "assert_close", "collected", "in_float64"]

_EXPERT = re.compile(r"(.*)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_FIRST, _SECOND = ("w1", "gate_proj"), ("w3", "up_proj")


def as_in_file(of_model: Mapping[str, Array], names: Iterable[str]) -> dict[str, Array]:
    """Arrays of a model's parameters by the names that its checkpoint has: experts one by one."""
    found = {}
    for name in names:
        expert = _EXPERT.fullmatch(name)
        if expert is None:
            found[name] = of_model[name.replace("block_sparse_moe.gate", "mlp.gate")]
            continue
        path, number, layer = expert[1], int(expert[2]), expert[3]
        if layer in (*_FIRST, *_SECOND):
            gate, up = np.split(of_model[f"{path}.mlp.experts.gate_up_proj"][number], 2)
            found[name] = gate if layer in _FIRST else up
        else:
            found[name] = of_model[f"{path}.mlp.experts.down_proj"][number]
    return found


def assert_close(found: dict[str, Array], expected: dict[str, Array]) -> None:
    """A gradient g of float32 is off by e times its layer's largest; g^2 then by 2 e |g| g_max.

    e = 1000 roundings of 2^-24: two layers forward and back are chains of sums over at most 64
    numbers each. The largest of the layer, not of the tensor: a sum over tokens may cancel, that
    of a key's bias does wholly, since softmax does not see a shift. F averages squares, so
    sqrt(F) stands for |g|. Squares below 2^-126 are lost.
    """
    largest: dict[str, float] = {}
    for name, fisher in expected.items():
        layer = name.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), float(fisher.max()))
    assert found.keys() == expected.keys()
    for name, fisher in expected.items():
        off = 1000 * 2.0**-24 * np.sqrt(largest[name.rpartition(".")[0]])
        bound = 2 * off * np.sqrt(fisher) + off**2 + 2.0**-126
        assert (np.abs(found[name] - fisher) <= bound).all(), name


def collected(
    model: nn.Module, task: Task, manifest: Manifest, examples: Sequence[Batch], folder: Path
) -> dict[str, Array]:
    """F of all tensors, as `collect_fisher` and `read_fisher` have it."""
    wanted = [(block, list(block.shapes)) for block in manifest.blocks]
    collect_fisher(model, task, wanted, examples, folder)
    return {n: f for block, names in wanted for n, f in read_fisher(folder, block, names).items()}


def in_float64(model: PreTrainedModel) -> Any:
    """A copy, in evaluation mode."""
    copied: Any = copy.deepcopy(model)
    copied.set_experts_implementation("eager")  # the usual one knows float32 alone
    return copied.double().eval()
