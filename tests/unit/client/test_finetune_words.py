"""Fine-tuning on words: the base's head, the labels of tokens, and what is learnt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, DataInvalid
from blindmerge.fine_tuned import check_fine_tuned
from blindmerge.tasks import Task
from blindmerge_client import finetune as module
from blindmerge_client.batches import tokenize
from blindmerge_client.data import Examples
from blindmerge_client.finetune import finetune, prepare_base
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.options import TrainingOptions
from blindmerge_client.predict import predict
from blindmerge_client.scores import score
from blindmerge_client.tasks import TASKS
from support.pico import TAGS, Architecture, pico_encoder, pico_examples, pico_sentences

TASK: Task = "token-classification"


def prepared(folder: Path, architecture: Architecture = "bert") -> Path:
    encoder = pico_encoder(folder / "encoder", architecture)
    prepare_base(encoder, TAGS, 0, folder / "base", TASK)
    return folder / "base"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_the_base_is_the_encoder_with_a_head_for_every_token(
    architecture: Architecture, tmp_path: Path
) -> None:
    base, encoder = Checkpoint(prepared(tmp_path, architecture)), Checkpoint(tmp_path / "encoder")
    assert base.architecture.endswith("ForTokenClassification")
    assert base.labels == TAGS
    head = base.manifest.blocks[-1]
    assert head.shapes == {"classifier.weight": (3, 16), "classifier.bias": (3,)}
    for name in base.shapes.keys() - head.shapes.keys():
        own = name.partition(".")[2]  # the encoder's names lack the prefix `bert.`
        np.testing.assert_array_equal(base.read([name])[name], encoder.read([own])[own])


def test_a_tagger_with_the_same_tags_is_kept(tmp_path: Path) -> None:
    source = pico_encoder(tmp_path / "source", labels=TAGS, task=TASK)
    prepare_base(source, TAGS, 7, tmp_path / "base", TASK)
    found, expected = Checkpoint(tmp_path / "base"), Checkpoint(source)
    for name in expected.shapes:
        np.testing.assert_array_equal(found.read([name])[name], expected.read([name])[name])
    with pytest.raises(CheckpointInvalid, match="head for the labels"):
        prepare_base(source, tuple(reversed(TAGS)), 7, tmp_path / "other", TASK)


@pytest.mark.parametrize(("has", "wanted"), [("single-label", TASK), (TASK, "single-label")])
def test_a_head_for_another_task_is_refused(has: Task, wanted: Task, tmp_path: Path) -> None:
    source = pico_encoder(tmp_path / "source", labels=TAGS, task=has)
    with pytest.raises(CheckpointInvalid, match=f"task '{has}', the job is '{wanted}'"):
        prepare_base(source, TAGS, 0, tmp_path / "base", wanted)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_a_fine_tuned_tagger_has_learnt_and_fits_the_base(
    architecture: Architecture, tmp_path: Path
) -> None:
    base, own = prepared(tmp_path, architecture), tmp_path / "own"
    options = TrainingOptions(epochs=12, learning_rate=5e-3, batch_size=16, max_length=64)
    finetune(base, pico_sentences(200), options, own)
    assert Checkpoint(own).shapes == Checkpoint(base).shapes
    check_fine_tuned(Checkpoint(own), Checkpoint(base))
    test = pico_sentences(200, seed=1)
    found = score(TASK, predict(own, test.texts, 64), test, TAGS)
    # Every word decides its tag, so a model that reads is nearly always right. All O has an F1
    # of 0; tags by chance find hardly one entity in four, since half of the words have none.
    assert found.metrics["f1"] > 0.75


def test_the_loss_is_that_of_first_tokens(tmp_path: Path) -> None:
    base = prepared(tmp_path)
    model, tokenizer = load_model(base), load_tokenizer(base)
    examples = Examples((("zebra", "good", "film"), ("we", "love")), ((2, 0, 2), (2, 0)))
    rows = [
        module._Row(tokens, TASKS[TASK].target(tokens.words, label))
        for tokens, label in zip(
            tokenize(tokenizer, examples.texts, 32), examples.labels, strict=True
        )
    ]
    with torch.no_grad():
        loss = float(model(**module._collate(tokenizer, rows, TASKS[TASK])).loss)
        expected = []
        for text, label in zip(examples.texts, examples.labels, strict=True):
            inputs = tokenizer(list(text), is_split_into_words=True, return_tensors="pt")
            logits = model(**inputs).logits[0]
            for word, index in enumerate(label if isinstance(label, tuple) else ()):
                place = inputs.word_ids(0).index(word)
                of_word = nn.functional.cross_entropy(logits[place], torch.tensor(index))
                expected.append(float(of_word))
    # Logits of size 1 are off by 4e-5 in a batch (see test_predict), and so is their loss.
    assert loss == pytest.approx(np.mean(expected), abs=4e-5)


def test_texts_do_not_fit_a_tagger(tmp_path: Path) -> None:
    options = TrainingOptions(epochs=1, max_length=16)
    with pytest.raises(DataInvalid, match="do not fit the 3 labels"):
        finetune(prepared(tmp_path), pico_examples(9), options, tmp_path / "own")
