"""A merged model as a LoRA adapter for the base: truncated singular value decompositions.

The change D = W* - W_0 of a linear layer is written as the product B A of rank r that is nearest
to it (Eckart and Young, 1936). Biases and the head are written as they are, and so is every
norm that moved. Embeddings are no part of such an adapter: what they moved by is lost, and
counts in the error. The files are peft's, so `peft.PeftModel.from_pretrained` reads them.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save

from blindmerge.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint
from blindmerge.errors import CheckpointInvalid
from blindmerge.files import replacing
from blindmerge.manifest import Linear
from blindmerge.statistic import Array

__all__ = ["AdapterReport", "LayerError", "write_adapter"]

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")
_PREFIX = "base_model.model."
Part = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LayerError(BaseModel):
    """How much of a layer's change is not in its factors."""

    model_config = _STRICT
    layer: str = Field(description="name of the layer")
    relative_error: Part = Field(description="|D - B A| / |D| in the Frobenius norm")


class AdapterReport(BaseModel):
    """How much of a merged model's change is not in an adapter."""

    model_config = _STRICT
    rank: int = Field(description="width of the factors")
    relative_error: Part = Field(
        description="norm of what is lost, over the norm of the change, of all tensors together"
    )
    layers: tuple[LayerError, ...] = Field(description="the layers that have factors")
    lost: tuple[str, ...] = Field(description="tensors whose change is lost as a whole")


@dataclass
class _Parts:
    """What an adapter is made of, by name in the model, and squared norms."""

    factors: dict[str, tuple[Array, Array]]
    whole: dict[str, Array]
    errors: list[LayerError]
    lost: list[str]
    square: float = 0.0
    lost_square: float = 0.0


def write_adapter(base: Checkpoint, merged: Checkpoint, rank: int, out: Path) -> AdapterReport:
    """Writes the change from `base` to `merged` as an adapter of this rank into the folder `out`.

    Raises CheckpointInvalid if the two do not have the same tensors, or if nothing has changed.
    """
    if merged.shapes != base.shapes or merged.architecture != base.architecture:
        raise CheckpointInvalid(
            f"'{merged.path}' and '{base.path}' are not of one architecture",
            hint="give the base that the merged model comes from",
        )
    parts = _decomposed(base, merged, rank)
    if parts.square == 0:
        raise CheckpointInvalid(f"'{merged.path}' is the same model as '{base.path}'")
    tensors = {f"{name}.lora_A.weight": a for name, (_, a) in parts.factors.items()}
    tensors |= {f"{name}.lora_B.weight": b for name, (b, _) in parts.factors.items()}
    tensors |= {_bias_in_peft(name, parts): whole for name, whole in parts.whole.items()}
    stored = {
        _PREFIX + name: np.ascontiguousarray(array, dtype=np.float32)
        for name, array in tensors.items()
    }
    with replacing(out) as temporary:
        temporary.mkdir()
        (temporary / ADAPTER_WEIGHTS).write_bytes(save(stored, metadata={"format": "pt"}))
        config = json.dumps(_config(base, parts, rank), indent=2, sort_keys=True)
        (temporary / ADAPTER_CONFIG).write_text(config)
    return AdapterReport(
        rank=rank,
        relative_error=math.sqrt(parts.lost_square / parts.square),
        layers=tuple(parts.errors),
        lost=tuple(parts.lost),
    )


def _decomposed(base: Checkpoint, merged: Checkpoint, rank: int) -> _Parts:
    parts = _Parts({}, {}, [], [])
    factored = dict(_factored(base))
    head = set(base.manifest.head.shapes) if base.manifest.head else set()
    for name in sorted(base.manifest.shapes):
        theirs, ours = (checkpoint.read([name])[name] for checkpoint in (base, merged))
        delta = ours - theirs
        square = float(np.vdot(delta, delta))
        parts.square += square
        if name in head or name.endswith(".bias"):
            parts.whole[name] = ours
        elif square == 0:
            continue
        elif name in factored:
            _factor(factored[name], delta, rank, parts)
        elif delta.ndim == 1:
            parts.whole[name] = ours
        else:
            parts.lost.append(name)
            parts.lost_square += square
    return parts


def _factored(base: Checkpoint) -> Iterator[tuple[str, Linear]]:
    """The layers that can have factors, by the name of their weight.

    Experts and their routers are no modules of their own, which peft would need.
    """
    for block in base.manifest.blocks:
        alone = [group for group in block.groups if group.expert is None and block.module]
        mixture = any(group.expert is not None for group in block.groups)
        for layer in (layer for group in alone for layer in group.layers):
            if layer.stored is None and not (mixture and layer.name.endswith(".gate")):
                yield layer.tensors[0], layer


def _factor(layer: Linear, delta: Array, rank: int, parts: _Parts) -> None:
    matrix = delta if layer.layout == "outputs-first" else delta.T
    u, s, vt = scipy.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, len(s))
    b, a = np.zeros((len(matrix), rank)), np.zeros((rank, matrix.shape[1]))
    root = np.sqrt(s[:kept])
    b[:, :kept], a[:kept] = u[:, :kept] * root, root[:, None] * vt[:kept]
    lost = float(np.sum(s[kept:] ** 2))
    parts.factors[layer.name] = (b, a)
    parts.errors.append(
        LayerError(layer=layer.name, relative_error=math.sqrt(lost / float(np.sum(s**2))))
    )
    parts.lost_square += lost


def _bias_in_peft(name: str, parts: _Parts) -> str:
    """peft puts a layer with factors under one more name."""
    module = name.rpartition(".")[0]
    return f"{module}.base_layer.bias" if module in parts.factors else name


def _config(base: Checkpoint, parts: _Parts, rank: int) -> dict[str, Any]:
    if not parts.factors:
        raise CheckpointInvalid(f"no linear layer differs from '{base.path}'")
    inputs_first = any(
        layer.layout == "inputs-first" and layer.name in parts.factors
        for _, layer in _factored(base)
    )
    whole = {name.rpartition(".")[0] for name in parts.whole if not name.endswith(".bias")}
    return {
        "base_model_name_or_path": str(base.path),
        "bias": "all",
        "fan_in_fan_out": inputs_first,
        "inference_mode": True,
        "lora_alpha": rank,  # the product counts once
        "modules_to_save": sorted(whole),
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(parts.factors),
    }
