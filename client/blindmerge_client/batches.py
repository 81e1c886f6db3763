"""Texts as padded batches of tokens, bucketed by length.

Texts of about the same length go together, so little is computed for padding. The same
texts give the same batches; `indices` says which text each row came from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "batches", "pad", "tokenize"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some texts as the model's inputs.

    indices: position of each row's text in the list that was batched.
    inputs: `input_ids`, `attention_mask` and whatever else the tokenizer makes, int64
        [rows, longest]; padding is where `attention_mask` is 0.
    """

    indices: tuple[int, ...]
    inputs: dict[str, torch.Tensor]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> list[dict[str, list[int]]]:
    """Each text's token ids, mask and so on, cut after max_length tokens, not padded."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)
    return [{key: encoded[key][i] for key in encoded} for i in range(len(texts))]


def batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, batch_size: int
) -> list[Batch]:
    """The texts in batches of at most batch_size rows, from the shortest to the longest.

    max_length: tokens after which a text is cut, special tokens included.
    A batch is padded to its own longest text. Texts of one length stay in their order.
    """
    rows = tokenize(tokenizer, texts, max_length)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    return [
        Batch(indices, pad(tokenizer, [rows[index] for index in indices]))
        for indices in _chunks(order, batch_size)
    ]


def pad(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, list[int]]]
) -> dict[str, torch.Tensor]:
    """Rows of `tokenize` as tensors [rows, longest], padded on the tokenizer's side."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return dict(tokenizer.pad(columns, return_tensors="pt"))


def _chunks(order: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(order), size):
        yield tuple(order[start : start + size])
