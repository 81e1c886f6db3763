"""Language models: data, targets, training, predictions and scores, against transformers alone."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, ConfigInvalid, DataInvalid
from blindmerge.privacy.accountant import Training
from blindmerge.tasks import METRICS, Task
from blindmerge_client import finetune as finetune_module
from blindmerge_client.batches import IGNORED, batches, following, tokenize
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.dp_sgd import TrainingNoise, finetune_with_noise
from blindmerge_client.finetune import finetune, prepare_base
from blindmerge_client.models import check_max_length, load_model, load_tokenizer
from blindmerge_client.options import TrainingOptions
from blindmerge_client.predict import predict
from blindmerge_client.scores import score
from blindmerge_client.tasks import TASKS, Pair, Text
from support.jobs import edit_config
from support.pico import LANGUAGE_MODELS, Architecture, examples_for, pico_encoder

each_task = pytest.mark.parametrize(
    ("architecture", "task"), [("gpt2", "causal-lm"), ("t5", "seq2seq")]
)
each_model = pytest.mark.parametrize(("architecture", "task"), LANGUAGE_MODELS)


def loss_of(model: Any, tokenizer: Any, text: Text) -> tuple[float, int]:
    """What transformers itself says of one text: the summed cross-entropy, and of how many tokens.

    Its losses are means over the tokens that are predicted.
    """
    if isinstance(text, Pair):
        inputs = tokenizer(text.source, return_tensors="pt")
        labels = tokenizer(text_target=text.target, return_tensors="pt")["input_ids"]
        count = labels.shape[1]
    else:
        inputs = tokenizer(text, return_tensors="pt")
        labels = inputs["input_ids"]
        count = labels.shape[1] - 1
    with torch.no_grad():
        return float(model(**inputs, labels=labels).loss) * count, count


@pytest.mark.parametrize(
    ("task", "row", "text"),
    [
        ("causal-lm", {"text": "so it is"}, "so it is"),
        ("seq2seq", {"source": "bad", "target": "good film"}, Pair("bad", "good film")),
    ],
)
def test_rows_are_read(task: Task, row: dict[str, str], text: Text, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert read_examples(file, (), task) == Examples((text,), ((),))
    for column in row:
        file.write_text(json.dumps(row | {column: " "}) + "\n")
        with pytest.raises(DataInvalid, match=f"the {column} is empty"):
            read_examples(file, (), task)


def test_a_token_is_followed_by_the_next_real_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pico_encoder(tmp_path, "gpt2", task="causal-lm"))
    (batch,) = batches(tokenizer, ["good film", "a good film"], 16, 2)
    ids = batch.inputs["input_ids"].tolist()
    assert following(batch.inputs).tolist() == [
        [*ids[0][1:4], IGNORED, IGNORED],
        [*ids[1][1:5], IGNORED],
    ]


def test_targets_are_cut_and_padded_apart_from_sources(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pico_encoder(tmp_path, "t5", task="seq2seq"))
    pairs = [Pair("good", "a good film is good"), Pair("a good film", "sad")]
    (batch,) = batches(tokenizer, pairs, 5, 2)
    labels = batch.inputs["labels"]
    assert labels.shape == (2, 5)
    assert following(batch.inputs) is labels
    # A word and two special tokens, and padding that is not in the loss.
    assert (labels == IGNORED).sum(dim=1).tolist() == [0, 2]
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [3, 5]


@each_model
def test_perplexity_is_that_of_transformers_loss_text_by_text(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    folder = pico_encoder(tmp_path / "model", architecture, task=task)
    examples = examples_for(task, 11)
    found = score(task, predict(folder, examples.texts, 32), examples, ())
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    losses = [loss_of(model, tokenizer, text) for text in examples.texts]
    expected = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
    # bfloat16 on some processors: see test_predict.
    assert math.log(found.metrics["perplexity"]) == pytest.approx(expected, abs=0.05)
    assert found.metrics.keys() == {metric.id for metric in METRICS[task]}
    assert 0 <= found.metrics["accuracy"] <= 1


@each_task
def test_a_model_learns_what_follows(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    source = pico_encoder(tmp_path / "source", architecture, task=task)
    base, own = tmp_path / "base", tmp_path / "own"
    prepare_base(source, (), 0, base, task)
    assert Checkpoint(base).task == task
    assert Checkpoint(base).labels == ()
    options = TrainingOptions(epochs=8, learning_rate=1e-2, batch_size=16, max_length=32)
    finetune(base, examples_for(task, 200), options, own)
    test = examples_for(task, 50, seed=1)
    before, after = (
        score(task, predict(folder, test.texts, 32), test, ()).metrics for folder in (base, own)
    )
    assert after["perplexity"] < before["perplexity"] / 2
    assert after["accuracy"] > before["accuracy"] + 0.2


def test_an_exact_match_is_what_greedy_decoding_gives(tmp_path: Path) -> None:
    base, own = pico_encoder(tmp_path / "base", "t5", task="seq2seq"), tmp_path / "own"
    pairs = tuple(Pair(word, word) for word in ("good", "bad", "film", "tweet", "so", "it"))
    examples = Examples(pairs, ((),) * len(pairs))
    options = TrainingOptions(epochs=40, learning_rate=1e-2, batch_size=3, max_length=8)
    finetune(base, examples.first(3), options, own)
    found = score("seq2seq", predict(own, pairs, 8), examples, ()).metrics
    model: Any = load_model(own)
    tokenizer = load_tokenizer(own)
    right = 0
    for pair in pairs:
        inputs = tokenizer(pair.source, return_tensors="pt")
        target = tokenizer(text_target=pair.target)["input_ids"]
        decoded = model.generate(**inputs, max_new_tokens=len(target), do_sample=False)
        right += decoded[0, 1:].tolist() == target
    assert found["exact_match"] == right / len(pairs)
    assert 0 < right < len(pairs)


@each_task
def test_the_loss_of_a_batch_is_the_mean_over_what_is_predicted(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    folder = pico_encoder(tmp_path / "model", architecture, task=task)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    texts = examples_for(task, 6).texts
    rows = [finetune_module._Row(tokens, []) for tokens in tokenize(tokenizer, texts, 32)]
    with torch.no_grad():
        loss = float(model(**finetune_module._collate(tokenizer, rows, TASKS[task])).loss)
    losses = [loss_of(model, tokenizer, text) for text in texts]
    expected = sum(each for each, _ in losses) / sum(count for _, count in losses)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_texts_of_one_token_teach_nothing_and_are_refused_if_there_is_no_other(
    tmp_path: Path,
) -> None:
    base = pico_encoder(tmp_path / "base", "gpt2", task="causal-lm")
    edit_config(base, "tokenizer.json", post_processor=None)  # no special tokens
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (base / "tokenizer_config.json").write_text(json.dumps(kind))
    options = TrainingOptions(epochs=1, max_length=8)
    with pytest.raises(DataInvalid, match="no text has a second token"):
        finetune(base, Examples(("good", "bad"), ((), ())), options, tmp_path / "none")
    finetune(base, Examples(("good", "bad film"), ((), ())), options, tmp_path / "own")
    assert np.isfinite(predict(tmp_path / "own", ["bad film"], 8)).all()
    assert len(predict(tmp_path / "own", ["bad film", "good"], 8)) == 1


# Two texts; of the first the second token is right, of the second both.
TOKENS = np.array([[-1.0, 0, 1], [-2.0, 1, 0], [-0.5, 1, 1], [-0.5, 1, 0]])


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("causal-lm", {"perplexity": math.e, "accuracy": 0.75}),
        ("seq2seq", {"perplexity": math.e, "accuracy": 0.75, "exact_match": 0.5}),
    ],
)
def test_scores_by_hand(task: Task, expected: dict[str, float]) -> None:
    found = score(task, TOKENS, Examples(("a", "b"), ((), ())), ()).metrics
    assert found == pytest.approx(expected)
    with pytest.raises(DataInvalid, match="no token to predict"):
        score(task, np.zeros((0, 3)), Examples(("a",), ((),)), ())


@each_task
def test_an_ensemble_has_the_mean_probability_and_the_majority(
    architecture: Architecture, task: Task
) -> None:
    assert architecture
    other = np.array([[-3.0, 1, 1], [-1.0, 0, 0], [-0.5, 1, 1], [-1.5, 0, 0]])
    third = np.array([[-0.1, 1, 1], [-1.0, 0, 0], [-0.5, 0, 1], [-2.5, 1, 0]])
    found = TASKS[task].combine([TOKENS, other, third])
    mean = np.mean([np.exp(each[:, 0]) for each in (TOKENS, other, third)], axis=0)
    np.testing.assert_allclose(np.exp(found[:, 0]), mean, rtol=2**-50)
    np.testing.assert_array_equal(found[:, 1], [1, 0, 1, 1])
    np.testing.assert_array_equal(found[:, 2], TOKENS[:, 2])


def without_output(folder: Path) -> Path:
    """A Llama without the output layer that is its own."""
    return pico_encoder(folder, "llama")


def other_kind(folder: Path) -> Path:
    return pico_encoder(folder, "bert")


@pytest.mark.parametrize(
    ("make", "words"), [(without_output, "lacks 1 tensors"), (other_kind, "no merge rules")]
)
def test_a_language_model_does_not_begin_without_its_output_layer(
    make: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointInvalid, match=words):
        prepare_base(make(tmp_path / "source"), (), 0, tmp_path / "base", "causal-lm")


def test_a_classifier_is_made_of_a_pre_trained_decoder(tmp_path: Path) -> None:
    source = pico_encoder(tmp_path / "source", "llama", task="causal-lm")
    prepare_base(source, ("no", "yes"), 0, tmp_path / "base")
    base = Checkpoint(tmp_path / "base")
    assert base.architecture == "LlamaForSequenceClassification"
    assert base.labels == ("no", "yes")
    with pytest.raises(CheckpointInvalid, match="'single-label', the job is 'causal-lm'"):
        prepare_base(base.path, (), 0, tmp_path / "other", "causal-lm")


def test_a_decoder_without_padding_is_padded_at_its_end(tmp_path: Path) -> None:
    source = pico_encoder(tmp_path / "source", "gpt2", task="causal-lm")
    edit_config(source, drop=("pad_token_id",))
    # As decoders have it: Bert's kind of tokenizer has a padding token whatever its file says.
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]"}
    (source / "tokenizer_config.json").write_text(json.dumps(kind))
    prepare_base(source, ("no", "yes"), 0, tmp_path / "base")
    model, tokenizer = load_model(tmp_path / "base"), load_tokenizer(tmp_path / "base")
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.config.pad_token_id == tokenizer.pad_token_id
    predictions = predict(tmp_path / "base", ["good film", "a good film is good"], 16)
    alone = predict(tmp_path / "base", ["good film"], 16)
    np.testing.assert_allclose(predictions[:1], alone, atol=0.05)


@pytest.mark.parametrize(
    ("architecture", "positions"), [("gpt2", 64), ("llama", 64), ("deberta", 64), ("albert", 64)]
)
def test_a_model_is_not_given_more_tokens_than_it_takes(
    architecture: Architecture, positions: int, tmp_path: Path
) -> None:
    folder = pico_encoder(tmp_path, architecture, labels=("no", "yes"))
    check_max_length(folder, positions)
    with pytest.raises(ConfigInvalid, match=f"at most {positions} tokens"):
        check_max_length(folder, positions + 1)


def test_relative_positions_have_no_end(tmp_path: Path) -> None:
    check_max_length(pico_encoder(tmp_path, "t5", task="seq2seq"), 10_000)


@each_task
def test_training_with_noise_is_not_there_for_language_models(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    base = pico_encoder(tmp_path / "base", architecture, task=task)
    noise = TrainingNoise(Training(multiplier=1.0, rate=0.5, steps=1), clip=1.0, divisor=1.0)
    charged: list[str] = []
    examples, options = examples_for(task, 2), TrainingOptions(max_length=16)
    out = tmp_path / "own"
    with pytest.raises(ConfigInvalid, match=f"no training with noise for the task '{task}'"):
        finetune_with_noise(base, examples, ((0,), (1,)), options, noise, out, charged.append)
    assert not out.exists()
    assert charged == []
