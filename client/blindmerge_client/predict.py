"""What models predict, for each text what its task says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from blindmerge.checkpoint import Checkpoint
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.batches import Batch, batches, following
from blindmerge_client.data import Examples
from blindmerge_client.models import (
    best_device,
    check_max_length,
    has_bfloat16,
    load_model,
    load_tokenizer,
)
from blindmerge_client.progress import Watch, unwatched
from blindmerge_client.tasks import TASKS, Outputs, Text

__all__ = ["predict", "predict_all", "predict_with"]

_LANGUAGE_BATCH_SIZE = 8


def predict(
    checkpoint: Path,
    texts: Sequence[Text],
    max_length: int,
    batch_size: int = 64,
    watch: Watch = unwatched,
) -> Array:
    """What a checkpoint predicts, [rows, columns]: a row per text, or per word of all texts.

    Rows are in the order of the texts; what they are is the task's `rows`, mostly logits.
    max_length: tokens after which a text is cut.   watch: shows how far it is.
    Computed in bfloat16 where the processor multiplies it, as fine-tuning is: nearly twice as
    fast, and one label in a thousand comes out different from float32.
    Raises CheckpointInvalid, or ConfigInvalid if max_length is more than the model takes.
    """
    return np.concatenate(_by_text(checkpoint, texts, max_length, batch_size, watch))


def predict_all(
    checkpoint: Path, sets: Mapping[str, Examples], max_length: int
) -> dict[str, Array]:
    """The predictions for every set of examples, from one load of the model (see `predict`)."""
    texts = [text for examples in sets.values() for text in examples.texts]
    rows = iter(_by_text(checkpoint, texts, max_length))
    return {
        name: np.concatenate([next(rows) for _ in examples.texts])
        for name, examples in sets.items()
    }


def _by_text(
    checkpoint: Path,
    texts: Sequence[Text],
    max_length: int,
    batch_size: int = 64,
    watch: Watch = unwatched,
) -> list[Array]:
    check_max_length(checkpoint, max_length)
    model: nn.Module = load_model(checkpoint)
    model.to(best_device())
    task, tokenizer = Checkpoint(checkpoint).task, load_tokenizer(checkpoint)
    return predict_with(model, task, tokenizer, texts, max_length, batch_size, watch)


def predict_with(
    model: nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    max_length: int,
    batch_size: int = 64,
    watch: Watch = unwatched,
) -> list[Array]:
    """`predict` with a model in memory, which is put into evaluation mode; an array per text."""
    model.eval()
    rules, device = TASKS[task], next(model.parameters()).device
    if rules.language:  # there are as many logits as words for every token
        batch_size = min(batch_size, _LANGUAGE_BATCH_SIZE)
    rows: dict[int, Array] = {}
    narrow = torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16())
    with torch.inference_mode(), narrow:
        for batch in watch(batches(tokenizer, texts, max_length, batch_size)):
            inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
            logits = model(**inputs).logits
            said = _of_following(logits, following(inputs)) if rules.language else logits.double()
            outputs = _outputs(model, batch, said.cpu().numpy(), texts)
            rows |= zip(batch.indices, rules.rows(outputs), strict=True)
    return [rows[index] for index in range(len(texts))]


def _of_following(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What is said of these tokens: see `Outputs`.   logits: [texts, places, vocabulary]."""
    said = torch.full((*tokens.shape, 2), torch.nan, dtype=torch.float64, device=logits.device)
    # Text by text: a copy of all logits would not always fit beside them.
    for each, right, found in zip(logits, tokens, said, strict=True):
        real = right >= 0
        values, target = each[real].float(), right[real, None]
        found[real, 0] = torch.log_softmax(values, dim=-1).gather(1, target)[:, 0].double()
        found[real, 1] = (values.argmax(dim=-1) == target[:, 0]).double()
    return said


def _outputs(model: nn.Module, batch: Batch, logits: Array, texts: Sequence[Text]) -> Outputs:
    config: Any = model.config
    return Outputs(
        logits=logits,
        inputs={name: tensor.numpy() for name, tensor in batch.inputs.items()},
        words=None if batch.words is None else batch.words.numpy(),
        texts=[texts[index] for index in batch.indices],
        labels=[config.id2label[index] for index in range(config.num_labels)],
    )
