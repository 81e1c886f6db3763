"""Batches hold every text once, as the tokenizer alone would make it."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from blindmerge_client.batches import batches
from blindmerge_client.models import load_tokenizer
from support.pico import Architecture, pico_encoder, pico_examples


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
