"""Batches hold every text once, as the tokenizer alone would make it."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import RobertaTokenizer

from blindmerge_client.batches import batches, tokenize
from blindmerge_client.models import load_tokenizer
from blindmerge_client.tasks import TASKS
from support.pico import Architecture, pico_encoder, pico_examples, pico_sentences


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_row_is_the_text_tokenized_alone(architecture: Architecture, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pico_encoder(tmp_path, architecture))
    texts = [*pico_examples(20).texts, "x", "a film", "good " * 50]
    made = batches(tokenizer, texts, max_length=10, batch_size=4)
    assert sorted(index for batch in made for index in batch.indices) == list(range(len(texts)))
    for batch in made:
        longest = 0
        for row, index in enumerate(batch.indices):
            alone = tokenizer(texts[index], truncation=True, max_length=10)
            real = batch.inputs["attention_mask"][row].bool()
            longest = max(longest, len(alone["input_ids"]))
            for name, tensor in batch.inputs.items():
                assert tensor[row][real].tolist() == alone[name]
            assert set(batch.inputs["input_ids"][row][~real].tolist()) <= {tokenizer.pad_token_id}
        assert {tensor.shape for tensor in batch.inputs.values()} == {(len(batch.indices), longest)}
        assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.int64}
        assert longest <= 10


def test_batches_go_from_short_to_long_and_keep_the_order_of_equals(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pico_encoder(tmp_path))
    texts = ["the film is good", "good", "a film", "bad", "it is bad", "we hate"]
    made = batches(tokenizer, texts, max_length=64, batch_size=2)
    assert [batch.indices for batch in made] == [(1, 3), (2, 5), (4, 0)]


def test_no_texts_make_no_batches(tmp_path: Path) -> None:
    assert batches(load_tokenizer(pico_encoder(tmp_path)), [], max_length=8, batch_size=2) == []


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_words_begin_where_their_first_token_is(
    architecture: Architecture, side: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(pico_encoder(tmp_path, architecture))
    tokenizer.padding_side = side
    texts = [*pico_sentences(20).texts, ("good",), ("zebra",) * 9]
    seen = []
    for batch in batches(tokenizer, texts, max_length=12, batch_size=4):
        assert batch.words is not None
        assert batch.words.shape == batch.inputs["input_ids"].shape
        for index, ids, mask, words in zip(
            batch.indices,
            batch.inputs["input_ids"],
            batch.inputs["attention_mask"],
            batch.words,
            strict=True,
        ):
            # Each word alone: all of its tokens, of which the first carries its number.
            expected = []
            for number, word in enumerate(texts[index]):
                pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
                expected += [(pieces[0], number), *((piece, -1) for piece in pieces[1:])]
            first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
            expected = [(first, -1), *expected[:10], (last, -1)]
            real = mask.bool()
            assert list(zip(ids[real].tolist(), words[real].tolist(), strict=True)) == expected
            assert set(words[~real].tolist()) <= {-1}
            seen.append(index)
    assert sorted(seen) == list(range(len(texts)))


def test_texts_have_no_words_and_words_without_tokens_no_place(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pico_encoder(tmp_path))
    assert [row.words for row in tokenize(tokenizer, ["good film"], 8)] == [None]
    assert batches(tokenizer, ["good film"], 8, 1)[0].words is None
    (row,) = tokenize(tokenizer, [("good", " ", "\u200b", "film")], 8)
    assert row.words == [-1, 0, 3, -1]


def test_words_are_tokens_after_a_space_to_a_byte_level_tokenizer(tmp_path: Path) -> None:
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", "a", "b", "Ġa"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    kind: Any = RobertaTokenizer
    kind(vocab=vocabulary, merges=[("Ġ", "a")]).save_pretrained(tmp_path / "source")
    tokenizer = load_tokenizer(tmp_path / "source", TASKS["token-classification"].head.tokenizer)
    tokenizer.save_pretrained(tmp_path / "base")
    (row,) = tokenize(load_tokenizer(tmp_path / "base"), [("a", "ab")], 8)
    assert [symbols[index] for index in row.inputs["input_ids"]] == ["<s>", "Ġa", "Ġa", "b", "</s>"]
    assert row.words == [-1, 0, 1, -1, -1]
