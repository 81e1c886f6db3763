"""Loading models and tokenizers from folders: offline, from safetensors, without chatter."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, ConfigInvalid
from blindmerge.manifest import head_layers
from blindmerge.tasks import LANGUAGE, Task
from blindmerge_client.tasks import TASKS

__all__ = [
    "auto_class",
    "best_device",
    "check_max_length",
    "first_line",
    "has_bfloat16",
    "head_classes",
    "is_processor",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "quiet",
    "save_model",
]

# One of these sets of files makes a tokenizer; transformers would invent one without them.
_PROCESSOR = "preprocessor_config.json"
_TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))


@contextmanager
def quiet() -> Iterator[None]:
    """Hides transformers' progress bars and warnings, but not its errors."""
    log: Any = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def best_device() -> torch.device:
    """A GPU if there is one that torch can use."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16() -> bool:
    """Whether the device multiplies matrices in bfloat16; emulated, it would be slower."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def auto_class(task: Task) -> Any:
    """The class of transformers that loads models for a task."""
    return getattr(transformers, TASKS[task].head.auto)


def head_classes(task: Task) -> Mapping[str, str]:
    """The name of the class with the task's head, by type of encoder."""
    classes: Mapping[str, str] = getattr(modeling_auto, TASKS[task].head.classes)
    return classes


def load_model(path: Path) -> PreTrainedModel:
    """The model in a checkpoint folder with its task's head, in float32, for evaluation.

    Raises CheckpointInvalid if it is none, cannot be read or lacks a tensor.
    """
    model, missing = _load(path, Checkpoint(path).task, {})
    _check_none_missing(path, missing)
    return model


def load_encoder(path: Path, labels: Sequence[str], task: Task) -> PreTrainedModel:
    """The encoder in a checkpoint folder with a new head for the task, in float32.

    labels: names of the head's outputs, in their order.
    The head comes from torch's global random state: seed it before.
    Raises CheckpointInvalid if it cannot be read or lacks a tensor of the encoder.
    """
    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    if task in LANGUAGE:
        # A new output layer would have to learn the language first.
        model, missing = _load(path, task, {})
        _check_none_missing(path, missing)
        return model
    model, missing = _load(path, task, {**names, **TASKS[task].head.config})
    # Encoders come with or without a pooler, which is part of the head here.
    _check_none_missing(path, missing - head_layers(type(model).__name__))
    return model


def load_tokenizer(
    path: Path, settings: Mapping[str, bool] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer in a checkpoint folder, or the image processor if it has one instead.

    Raises CheckpointInvalid if there is none.
    settings: in place of those in the folder; one that its kind does not know has no effect.
    """
    if (path / _PROCESSOR).is_file() and not (path / "tokenizer_config.json").is_file():
        processor: PreTrainedTokenizerBase = _load_processor(path)
        return processor
    if not any(all((path / file).is_file() for file in files) for files in _TOKENIZERS):
        raise CheckpointInvalid(
            f"'{path}' has no tokenizer",
            hint="save it there with `tokenizer.save_pretrained`; tokenizer.json is enough",
        )
    kind: Any = AutoTokenizer
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
                path, local_files_only=True, **(settings or {})
            )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointInvalid(
            f"the tokenizer in '{path}' cannot be read: {first_line(error)}"
        ) from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        # Decoders come without one; a mask says what is padding, whatever stands there.
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise CheckpointInvalid(
            f"the tokenizer in '{path}' has no padding token", hint="texts of a batch need one"
        )
    return tokenizer


def is_processor(tokenizer: object) -> bool:
    """Whether this is an image processor, in the place of a tokenizer."""
    return isinstance(tokenizer, BaseImageProcessor)


def _load_processor(path: Path) -> Any:
    kind: Any = AutoImageProcessor
    try:
        with quiet():
            # Pillow's: the same numbers, whether or not torchvision is there.
            processor: Any = kind.from_pretrained(path, local_files_only=True, backend="pil")
    except Exception as error:  # as above
        raise CheckpointInvalid(
            f"the image processor in '{path}' cannot be read: {first_line(error)}"
        ) from error
    return processor


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a checkpoint with its tokenizer.   Raises OSError, also where the disk is full."""
    try:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors and tokenizers are Rust, which has no OSError
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), str(error)) from error
        raise


def check_max_length(path: Path, max_length: int) -> None:
    """Raises ConfigInvalid if the checkpoint has fewer positions than max_length tokens."""
    config = Checkpoint(path).config
    # GPT-2 has a name of its own for it.
    name = "n_positions" if config.get("model_type") == "gpt2" else "max_position_embeddings"
    positions = config.get(name, max_length)
    if config.get("model_type") == "roberta":
        positions -= config.get("pad_token_id", 1) + 1  # its positions count from there
    if max_length > positions:
        raise ConfigInvalid(
            f"max_length is {max_length}, but '{path}' takes at most {positions} tokens",
            hint=f"set max_length to {positions} or less",
        )


def _load(path: Path, task: Task, config: Mapping[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of its tensors that the folder does not have."""
    try:
        with quiet():
            model, loading = auto_class(task).from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,  # a pickle could run code
                dtype=torch.float32,
                output_loading_info=True,
                **config,
            )
    except Exception as error:  # from OSError to SafetensorError, with no common base
        raise CheckpointInvalid(
            f"transformers cannot load '{path}': {first_line(error)}",
            hint="save it again with `save_pretrained`; pickles are not read",
        ) from error
    return model.eval(), set(loading["missing_keys"])


def _check_none_missing(path: Path, missing: set[str]) -> None:
    if missing:
        raise CheckpointInvalid(f"'{path}' lacks {len(missing)} tensors, one is '{min(missing)}'")


def first_line(error: Exception) -> str:
    """What an error of a library says, without the pages that may follow."""
    return next(iter(str(error).splitlines()), type(error).__name__)
