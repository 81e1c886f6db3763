"""Texts as padded batches of tokens, bucketed by length.

Texts of about the same length go together, so little is computed for padding. The same
texts give the same batches; `indices` says which text each row came from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from blindmerge_client.images import decoded
from blindmerge_client.tasks import Image, Pair, Text

__all__ = ["IGNORED", "Batch", "Tokens", "batches", "following", "pad", "spread", "tokenize"]

IGNORED = -100  # torch's label for what has no part in the loss
_NO_WORD = -1


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the tokens of a model.

    inputs: their ids, mask and whatever else the tokenizer makes; `labels`, if the text comes with
    another that it becomes, are the tokens of that.
    words: for each token the number of the word that it begins, -1 if it begins none. A word
    cut off, or without a token, has no place here. None for a text that is not words.
    image: in place of all that, of an image.
    """

    inputs: dict[str, list[int]]
    words: list[int] | None
    image: Image | None = None

    def __len__(self) -> int:
        return len(self.inputs["input_ids"]) if self.image is None else 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Some texts as the model's inputs.

    indices: position of each row's text in the list that was batched.
    inputs: `input_ids`, `attention_mask` and whatever else the tokenizer makes, int64
        [rows, longest]; padding is where `attention_mask` is 0. In `labels`, which is as long as
        the longest target, it is IGNORED.
    words: of the tokens, see `Tokens`, [rows, longest]; padding has -1.
    fold: which part of the texts it is of, where they are parted.
    Of images the one input is `pixel_values`, float32 [rows, channels, height, width].
    """

    indices: tuple[int, ...]
    inputs: dict[str, torch.Tensor]
    words: torch.Tensor | None = None
    fold: int = 0

    @property
    def tokens(self) -> int:
        """How many real tokens there are; an image counts as one."""
        mask = self.inputs.get("attention_mask")
        return len(self.indices) if mask is None else int(mask.sum())


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
) -> list[Tokens]:
    """Each text cut after max_length tokens, special tokens included.

    texts: strings, words as lists, pairs, both texts of which are cut, or images; not a mixture.
    """
    if not texts:
        return []
    images = [text for text in texts if isinstance(text, Image)]
    if images:
        return [Tokens({}, None, image) for image in images]
    if isinstance(texts[0], Pair):
        return _tokenize_pairs(tokenizer, texts, max_length)
    split = not isinstance(texts[0], str)
    # The library tells batches of words from words by the type `list`.
    plain = [list(text) if split else text for text in texts]
    encoded = tokenizer(
        plain, is_split_into_words=split, truncation=True, max_length=max_length, padding=False
    )
    return [
        Tokens(
            inputs={key: encoded[key][i] for key in encoded},
            words=_beginnings(encoded.word_ids(i)) if split else None,
        )
        for i in range(len(texts))
    ]


def _tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Any], max_length: int
) -> list[Tokens]:
    cut: Any = {"truncation": True, "max_length": max_length, "padding": False}
    sources = tokenizer([text.source for text in texts], **cut)
    targets = tokenizer(text_target=[text.target for text in texts], **cut)["input_ids"]
    return [
        Tokens({key: sources[key][i] for key in sources} | {"labels": targets[i]}, None)
        for i in range(len(texts))
    ]


def _beginnings(words: Sequence[int | None]) -> list[int]:
    """words: of each token, None for a special token."""
    before = [None, *words]
    return [
        _NO_WORD if word is None or word == previous else word
        for previous, word in zip(before, words, strict=False)
    ]


def batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int, batch_size: int
) -> list[Batch]:
    """The texts in batches of at most batch_size rows, from the shortest to the longest.

    max_length: tokens after which a text is cut, special tokens included.
    A batch is padded to its own longest text. Texts of one length stay in their order.
    """
    rows = tokenize(tokenizer, texts, max_length)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    return [
        _batch(tokenizer, indices, [rows[index] for index in indices])
        for indices in _chunks(order, batch_size)
    ]


def _batch(
    tokenizer: PreTrainedTokenizerBase, indices: tuple[int, ...], rows: Sequence[Tokens]
) -> Batch:
    inputs = pad(tokenizer, rows)
    words = [row.words for row in rows if row.words is not None]
    return Batch(indices, inputs, spread(words, inputs, _NO_WORD) if words else None)


def pad(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    """Rows of `tokenize` as tensors [rows, longest], padded on the tokenizer's side.

    tokenizer: an image processor, if they are images, which are decoded here.
    """
    images = [decoded(row.image) for row in rows if row.image is not None]
    if images:
        processor: Any = tokenizer
        return {"pixel_values": processor(images=images, return_tensors="pt")["pixel_values"]}
    columns = {key: [row.inputs[key] for row in rows] for key in rows[0].inputs}
    labels = columns.pop("labels", None)
    padded = dict(tokenizer.pad(columns, return_tensors="pt"))
    if labels is not None:
        tensors = [torch.tensor(each) for each in labels]
        padded["labels"] = pad_sequence(tensors, batch_first=True, padding_value=IGNORED)
    return padded


def following(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The token that a language model is to predict at each place, [rows, places].

    IGNORED where there is none. Of a text with a target that is the target's own token, since a
    decoder gets the one before.
    """
    if "labels" in inputs:
        return inputs["labels"]
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    tokens = torch.full_like(ids, IGNORED)
    tokens[:, :-1] = torch.where(mask[:, 1:] & mask[:, :-1], ids[:, 1:], IGNORED)
    return tokens


def spread(
    values: Sequence[Sequence[int]], inputs: dict[str, torch.Tensor], padding: int
) -> torch.Tensor:
    """One value per token in the shape of the padded inputs, int64 [rows, longest]."""
    spread = torch.full_like(inputs["input_ids"], padding)
    flat = [value for row in values for value in row]
    spread[inputs["attention_mask"].bool()] = torch.tensor(flat)
    return spread


def _chunks(order: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(order), size):
        yield tuple(order[start : start + size])
