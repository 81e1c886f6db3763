"""Predictions are the model's, in the order of texts and words."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from blindmerge.errors import CheckpointInvalid, ConfigInvalid
from blindmerge_client import predict as module
from blindmerge_client.data import Examples
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.predict import (
    predict,
    predict_all,
    predict_with,
)
from blindmerge_client.tasks.rules import softmax
from blindmerge_client.tasks.single_label import mean_of_probabilities
from support.pico import TAGS, Architecture, pico_encoder, pico_examples, pico_sentences


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_logits_are_those_of_each_text_alone(
    architecture: Architecture, bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda: bfloat16)
    folder = pico_encoder(tmp_path, architecture, labels=("no", "yes", "maybe"))
    texts = [*pico_examples(20).texts, "good " * 50]
    logits = predict(folder, texts, max_length=16, batch_size=8)
    assert logits.shape == (21, 3)
    assert logits.dtype == np.float64
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    for text, row in zip(texts, logits, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            alone = model(**inputs).logits[0].numpy()
        # Sums of at most 32 float32 products in another order, through about 20 operations,
        # on numbers of size 1: 32 * 20 * 2^-24 = 4e-5. In bfloat16 each of the operations rounds
        # inputs, weights and result to 8 bits: 3 * 20 * 2^-9 = 0.12.
        np.testing.assert_allclose(row, alone, rtol=0, atol=0.12 if bfloat16 else 4e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_logits_of_words_are_those_of_their_first_tokens(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    folder = pico_encoder(tmp_path, architecture, labels=TAGS, task="token-classification")
    texts = [*pico_sentences(20).texts, ("a", " ", "zebra", "good"), ("zebra",) * 9]
    logits = predict(folder, texts, max_length=16, batch_size=8)
    assert logits.shape == (sum(map(len, texts)), 3)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rows = iter(logits)
    missing = 0
    for text in texts:
        inputs = tokenizer(
            list(text),
            is_split_into_words=True,
            truncation=True,
            max_length=16,
            return_tensors="pt",
        )
        with torch.no_grad():
            alone = model(**inputs).logits[0].numpy()
        places = inputs.word_ids(0)
        for word in range(len(text)):
            if word in places:
                expected = alone[places.index(word)]
                # See above.
                np.testing.assert_allclose(next(rows), expected, rtol=0, atol=4e-5)
            else:
                np.testing.assert_array_equal(softmax(next(rows)[None]), [[0, 0, 1]])
                missing += 1
    # The space, and of nine zebras of 5 tokens those after the third, at least.
    assert missing >= 1 + 6


def test_words_that_nobody_sees_are_outside_in_the_ensemble_too(tmp_path: Path) -> None:
    folders = [
        pico_encoder(tmp_path / str(seed), seed=seed, labels=TAGS, task="token-classification")
        for seed in range(2)
    ]
    found = [predict(folder, [("zebra",) * 9], max_length=16) for folder in folders]
    np.testing.assert_array_equal(mean_of_probabilities(found)[-6:], [[0, 0, 1]] * 6)


@pytest.mark.parametrize("words", [False, True])
def test_sets_are_predicted_as_if_alone(words: bool, tmp_path: Path) -> None:
    folder = pico_encoder(
        tmp_path, labels=TAGS, task="token-classification" if words else "single-label"
    )
    make = pico_sentences if words else pico_examples
    sets: dict[str, Examples] = {name: make(5, seed=n) for n, name in enumerate("abc")}
    found = predict_all(folder, sets, max_length=16)
    assert list(found) == list(sets)
    for name, examples in sets.items():
        alone = predict(folder, examples.texts, max_length=16)
        # bfloat16, in batches of other lengths: see above.
        np.testing.assert_allclose(found[name], alone, rtol=0, atol=0.12)


def test_dropout_is_off(tmp_path: Path) -> None:
    folder = pico_encoder(tmp_path, labels=("no", "yes"))
    model = load_model(folder)
    model.train()
    texts = pico_examples(5).texts
    rows = predict_with(model, "single-label", load_tokenizer(folder), texts, max_length=16)
    np.testing.assert_array_equal(np.concatenate(rows), predict(folder, texts, max_length=16))


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    bert = pico_encoder(tmp_path / "bert", labels=("no", "yes"))
    roberta = pico_encoder(tmp_path / "roberta", "roberta", labels=("no", "yes"))
    for folder in (bert, roberta):
        assert predict(folder, ["good " * 99], max_length=64).shape == (1, 2)
        with pytest.raises(ConfigInvalid, match="at most 64 tokens"):
            predict(folder, ["good"], max_length=65)


def test_an_encoder_without_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match=r"no rules.*'BertModel'"):
        predict(pico_encoder(tmp_path), ["good"], max_length=8)


def test_softmax_of_large_and_small_logits() -> None:
    found = softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0], [0.0, math.log(3)]]))
    # exp and log round once each, the quotient and the sum once more.
    assert found == pytest.approx(np.array([[0.5, 0.5], [0, 1], [0.25, 0.75]]), rel=4 * 2**-53)


def test_ensemble_is_the_mean_of_probabilities_not_of_logits() -> None:
    sure, unsure = np.log(np.array([[1.0, 99.0]])), np.log(np.array([[3.0, 1.0]]))
    expected = np.array([[(0.01 + 0.75) / 2, (0.99 + 0.25) / 2]])
    # A relative error of 2^-53 in log 99 = 4.6 is 4.6 * 2^-53 after exp; five roundings more.
    assert np.abs(mean_of_probabilities([sure, unsure]) / expected - 1).max() < 10 * 2**-53
