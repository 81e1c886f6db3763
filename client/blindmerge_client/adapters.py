"""LoRA adapters (Hu et al., ICLR 2022) at an owner, through peft: read, and trained.

What is merged is the change of the weights, the scaled product B A, as any other D_k: the factors
are not unique (B T^-1 and T A have the same product), so sums of B and of A mean nothing. An
owner's adapter is therefore added to the base, once, and the model is like every other from there.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from blindmerge import canonical
from blindmerge.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint, read_json
from blindmerge.errors import CheckpointInvalid, ConfigInvalid, ResourceMissing
from blindmerge.files import replacing
from blindmerge.manifest import Manifest
from blindmerge.tensorfile import read_header
from blindmerge_client.models import first_line, load_model, load_tokenizer, quiet, save_model
from blindmerge_client.options import LoraOptions

__all__ = ["full_weights", "labels_of", "with_lora", "without_lora"]


def full_weights(own: Path, base: Path, folder: Path) -> Path:
    """The folder of an owner's model with all its weights: `own`, unless that is an adapter.

    folder: private; an adapter is added to `base` there, in float32, once.
    Raises CheckpointInvalid if the adapter is none of LoRA or not one for the base, and
    ResourceMissing without peft.
    """
    if not (own / ADAPTER_CONFIG).is_file():
        return own
    config = read_json(own / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointInvalid(
            f"'{own}' is an adapter of the type {kind}, which cannot be merged",
            hint="LoRA adapters can; for others give the model with all its weights",
        )
    if not (own / ADAPTER_WEIGHTS).is_file():
        raise CheckpointInvalid(
            f"'{own}' has no {ADAPTER_WEIGHTS}",
            hint="save the adapter with peft's `save_pretrained`; pickles are not read",
        )
    files = [(own / name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    key = hashlib.sha256(canonical.encode([Checkpoint(base).sha256, files])).hexdigest()
    out = folder / f"adapter-{key}"
    if not out.is_dir():
        model = _added(own, base)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(out) as temporary:
            save_model(model, load_tokenizer(base), temporary)
    return out


def labels_of(own: Path, base: Path) -> tuple[str, ...]:
    """The labels of an owner's model; of an adapter, those of the base."""
    adapter = (own / ADAPTER_CONFIG).is_file() and not (own / "config.json").is_file()
    return Checkpoint(base if adapter else own).labels


def _added(own: Path, base: Path) -> PreTrainedModel:
    peft = _peft()
    model = load_model(base)
    try:
        with _calm(), warnings.catch_warnings():
            # peft only warns of factors that the file lacks, and leaves them random.
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted = peft.PeftModel.from_pretrained(model, own, torch_device="cpu")
            known = peft.get_peft_model_state_dict(adapted)
    except Exception as error:  # from KeyError to SafetensorError, with no common base
        raise CheckpointInvalid(
            f"the adapter '{own}' does not fit the base: {first_line(error)}",
            hint="it must have been trained on the job's base checkpoint",
        ) from error
    surplus = sorted(read_header(own / ADAPTER_WEIGHTS).keys() - known.keys())
    if surplus:
        raise CheckpointInvalid(
            f"the adapter '{own}' does not fit the base: no place for '{surplus[0]}'",
            hint="it must have been trained on the job's base checkpoint",
        )
    return without_lora(adapted)


def with_lora(model: PreTrainedModel, manifest: Manifest, options: LoraOptions) -> Any:
    """The model with new factors at linear layers of its transformer layers, and a free head.

    Raises ConfigInvalid if a target is no such layer, and ResourceMissing without peft.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        fan_in_fan_out=any(
            layer.layout == "inputs-first"
            for block in manifest.blocks
            for group in block.groups
            for layer in group.layers
        ),
        target_modules=_targets(model, manifest, options.targets),
        modules_to_save=[
            layer.name
            for group in (manifest.head.groups if manifest.head else ())
            for layer in group.layers
        ],
    )
    with _calm():
        return peft.get_peft_model(model, config)


def without_lora(adapted: Any) -> PreTrainedModel:
    """The model of an adapter, with the products added to its weights."""
    with _calm():
        model: Any = adapted.merge_and_unload()
    whole: PreTrainedModel = model.eval()
    return whole


def _targets(model: PreTrainedModel, manifest: Manifest, wanted: Sequence[str]) -> list[str]:
    groups = [group for block in manifest.blocks if block.module for group in block.groups]
    modules = dict(model.named_modules())
    # Experts and their routers are no modules that peft knows.
    layers = [
        layer.name
        for group in groups
        for layer in group.layers
        if isinstance(modules.get(layer.name), (nn.Linear, Conv1D))
    ]
    if not wanted:
        return layers
    for name in wanted:
        if not any(layer.endswith(f".{name}") for layer in layers):
            ends = sorted({layer.rpartition(".")[2] for layer in layers})
            raise ConfigInvalid(
                f"training.lora.targets: no linear layer of the model ends with '{name}'",
                hint=f"its layers end with {', '.join(ends)}; leave targets out for all of them",
            )
    return [layer for layer in layers if layer.endswith(tuple(f".{name}" for name in wanted))]


@contextmanager
def _calm() -> Iterator[None]:
    """Without what peft says about itself."""
    with quiet(), warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for an attribute that has got a new name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise ResourceMissing(
            "LoRA adapters need the package peft", hint="pip install 'blindmerge[lora]'"
        ) from error
