"""What models predict for texts or for words."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from blindmerge.statistic import Array
from blindmerge_client.batches import Batch, batches
from blindmerge_client.data import Examples, Text
from blindmerge_client.models import check_max_length, has_bfloat16, load_model, load_tokenizer

__all__ = ["ensemble", "predict", "predict_all", "predict_with", "softmax"]


def predict(
    checkpoint: Path, texts: Sequence[Text], max_length: int, batch_size: int = 64
) -> Array:
    """The logits of a checkpoint, [rows, labels]: a row per text, or per word of all texts.

    Rows are in the order of the texts. A word without a token, since its text was cut or the
    tokenizer knows none of its characters, is outside of all entities: `O` with probability 1.
    max_length: tokens after which a text is cut.
    Computed in bfloat16 where the processor multiplies it, as fine-tuning is: nearly twice as
    fast, and one label in a thousand comes out different from float32.
    Raises CheckpointInvalid, or ConfigInvalid if max_length is more than the model takes.
    """
    check_max_length(checkpoint, max_length)
    model: nn.Module = load_model(checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return predict_with(model, load_tokenizer(checkpoint), texts, max_length, batch_size)


def predict_all(
    checkpoint: Path, sets: Mapping[str, Examples], max_length: int
) -> dict[str, Array]:
    """The logits for every set of examples, from one load of the model (see `predict`)."""
    texts = [text for examples in sets.values() for text in examples.texts]
    logits = predict(checkpoint, texts, max_length)
    ends = np.cumsum([len(examples.gold) for examples in sets.values()])[:-1]
    return dict(zip(sets, np.split(logits, ends), strict=True))


def predict_with(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    max_length: int,
    batch_size: int = 64,
) -> Array:
    """`predict` with a model in memory, which is put into evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    rows: dict[int, Array] = {}
    narrow = torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16())
    with torch.inference_mode(), narrow:
        for batch in batches(tokenizer, texts, max_length, batch_size):
            inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
            logits = model(**inputs).logits.double().cpu().numpy()
            if batch.words is None:
                rows |= zip(batch.indices, logits[:, None], strict=True)
            else:
                rows |= _by_word(batch, logits, texts, _outside(model))
    return np.concatenate([rows[index] for index in range(len(texts))])


def _outside(model: nn.Module) -> Array:
    """Logits [labels] of certainty that a word is outside of all entities."""
    config: Any = model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    return np.where(np.array(names) == "O", 0.0, -np.inf)


def _by_word(
    batch: Batch, logits: Array, texts: Sequence[Text], outside: Array
) -> Iterator[tuple[int, Array]]:
    """For each text of the batch its index and the logits of its words, [words, labels].

    logits: [texts, tokens, labels]; a word has those of its first token.
    """
    words = np.asarray(batch.words)
    for index, numbers, of_tokens in zip(batch.indices, words, logits, strict=True):
        by_word = np.tile(outside, (len(texts[index]), 1))
        by_word[numbers[numbers >= 0]] = of_tokens[numbers >= 0]
        yield index, by_word


def softmax(logits: Array) -> Array:
    """Probabilities [rows, labels]; rows add up to 1."""
    # The largest logit becomes 0, so that exp does not overflow.
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def ensemble(logits: Sequence[Array]) -> Array:
    """Mean of the models' probabilities, [rows, labels].   logits: one array per model."""
    return np.asarray(np.mean([softmax(each) for each in logits], axis=0))
