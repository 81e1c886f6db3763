"""Bases and fine-tuning: what comes out can be merged, repeats itself, and is whole or absent."""

import json
import logging
import random
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, ConfigInvalid, DataInvalid, ResourceMissing
from blindmerge.fine_tuned import check_fine_tuned
from blindmerge_client import finetune as module
from blindmerge_client.data import Examples
from blindmerge_client.finetune import (
    cached_finetune,
    finetune,
    finetune_key,
    prepare_base,
)
from blindmerge_client.options import TrainingOptions
from blindmerge_client.predict import predict
from blindmerge_client.scores import score
from support.pico import Architecture, pico_encoder, pico_examples, pico_sentences

LABELS = ("negative", "positive")
FAST = TrainingOptions(epochs=1, batch_size=8, max_length=16)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A pico base checkpoint."""
    prepare_base(pico_encoder(tmp_path / "encoder"), LABELS, 0, tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_the_base_is_the_encoder_with_a_new_head(
    architecture: Architecture, tmp_path: Path
) -> None:
    encoder = Checkpoint(pico_encoder(tmp_path / "encoder", architecture))
    prepare_base(encoder.path, LABELS, 0, tmp_path / "base")
    base = Checkpoint(tmp_path / "base")
    assert base.labels == LABELS
    assert base.config["label2id"] == {"negative": 0, "positive": 1}
    body = [block for block in base.manifest.blocks if block.name != "head"]
    for name in (name for block in body for name in block.shapes):
        own = name.partition(".")[2]  # the encoder's names lack the prefix `bert.`
        np.testing.assert_array_equal(base.read([name])[name], encoder.read([own])[own])
    head = base.read(base.manifest.blocks[-1].shapes)
    assert all(array.any() for name, array in head.items() if name.endswith("weight"))


def test_the_head_depends_on_the_seed_alone(tmp_path: Path) -> None:
    encoder = pico_encoder(tmp_path / "encoder")
    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        before = torch.random.get_rng_state()
        prepare_base(encoder, LABELS, seed, tmp_path / str(number))
        assert torch.equal(before, torch.random.get_rng_state())
        torch.manual_seed(number)  # the caller's state must not matter
        hashes.append(Checkpoint(tmp_path / str(number)).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        # As they say it, word for word; Python's own errors have a number.
        (
            PreTrainedModel,
            SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
        ),
        (PreTrainedTokenizerBase, Exception("No space left on device (os error 28)")),
    ],
)
def test_a_disk_that_fills_up_is_explained(
    kind: type[Any], error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = pico_encoder(tmp_path / "encoder")
    monkeypatch.setattr(kind, "save_pretrained", Mock(side_effect=error))
    with pytest.raises(ResourceMissing, match="the disk is full"):
        prepare_base(encoder, LABELS, 0, tmp_path / "base")
    assert list(tmp_path.iterdir()) == [encoder]


def test_a_classifier_with_the_same_labels_is_kept(tmp_path: Path) -> None:
    source = pico_encoder(tmp_path / "source", labels=LABELS)
    prepare_base(source, LABELS, 7, tmp_path / "base")
    assert Checkpoint(tmp_path / "base").sha256 == Checkpoint(source).sha256


def _set(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config no json": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON obj"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    "bad tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be"),
    "other type": (lambda folder: _set(folder, model_type="bloom"), "'bloom'.*no merge rules"),
    "no type": (lambda folder: _set(folder, model_type=None), "no merge rules"),
    "deeper": (lambda folder: _set(folder, num_hidden_layers=3), "lacks 16 tensors"),
    "wider": (lambda folder: _set(folder, intermediate_size=33), "cannot load"),
    "small vocabulary": (lambda folder: _set(folder, vocab_size=9), "cannot load"),
    "truncated": (_truncate, "cannot load"),
    "pickle": (_pickle_only, "cannot load"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_sources_are_refused_and_leave_nothing(case: str, tmp_path: Path) -> None:
    spoil, pattern = UNFIT[case]
    source = pico_encoder(tmp_path / "source")
    spoil(source)
    with pytest.raises(CheckpointInvalid, match=pattern) as caught:
        prepare_base(source, LABELS, 0, tmp_path / "out" / "base")
    assert "source" in caught.value.message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("labels", [("positive", "negative"), ("no", "yes"), (*LABELS, "mixed")])
def test_a_classifier_with_other_labels_is_refused(labels: tuple[str, ...], tmp_path: Path) -> None:
    source = pico_encoder(tmp_path / "source", labels=LABELS)
    with pytest.raises(CheckpointInvalid, match="head for the labels"):
        prepare_base(source, labels, 0, tmp_path / "base")


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_a_fine_tuned_model_has_learnt_and_fits_the_base(
    architecture: Architecture, tmp_path: Path
) -> None:
    base, own = tmp_path / "base", tmp_path / "own"
    prepare_base(pico_encoder(tmp_path / "encoder", architecture), LABELS, 0, base)
    options = TrainingOptions(epochs=12, learning_rate=5e-3, batch_size=16, max_length=16)
    finetune(base, pico_examples(200), options, own)
    assert Checkpoint(own).shapes == Checkpoint(base).shapes
    check_fine_tuned(Checkpoint(own), Checkpoint(base))
    test = pico_examples(200, seed=1)
    # One word decides the label, so a model that reads is nearly always right; guessing is
    # right half the time, and 150 of 200 by chance has probability 4e-13.
    found = score("single-label", predict(own, test.texts, 16), test, LABELS)
    assert found.metrics["accuracy"] > 0.75


def test_the_same_inputs_give_the_same_model(base: Path, tmp_path: Path) -> None:
    examples = pico_examples(30)
    finetune(base, examples, FAST, tmp_path / "a")
    torch.manual_seed(99)
    finetune(base, examples, FAST, tmp_path / "b")
    finetune(base, examples, FAST.model_copy(update={"seed": 1}), tmp_path / "c")
    first, same, other = (Checkpoint(tmp_path / name).sha256 for name in "abc")
    assert first == same != other


def test_global_random_states_are_left_alone(base: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())
    finetune(base, pico_examples(9), FAST, tmp_path / "own")
    after = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_progress_counts_every_step(base: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    options = FAST.model_copy(update={"epochs": 2})
    finetune(base, pico_examples(20), options, tmp_path / "own", lambda *at: steps.append(at))
    assert steps == [(number, 6) for number in range(1, 7)]


def test_nothing_is_printed_or_logged(
    base: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    verbosity = transformers.utils.logging.get_verbosity()
    finetune(base, pico_examples(9), FAST, tmp_path / "own")
    prepare_base(pico_encoder(tmp_path / "other"), LABELS, 0, tmp_path / "other base")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    assert transformers.utils.logging.get_verbosity() == verbosity


def test_ctrl_c_leaves_nothing_half_written(base: Path, tmp_path: Path) -> None:
    def interrupt(_done: int, _all: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(base, pico_examples(9), FAST, tmp_path / "out" / "own", interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_labels_and_lengths_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    for examples in (Examples(("good",), (2,)), Examples(("good",), (-1,)), Examples((), ())):
        with pytest.raises(DataInvalid, match="2 labels"):
            finetune(base, examples, FAST, tmp_path / "own")
    long = FAST.model_copy(update={"max_length": 65})
    with pytest.raises(ConfigInvalid, match="at most 64"):
        finetune(base, pico_examples(9), long, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_examples_for_another_task_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="do not fit"):
        finetune(base, pico_sentences(9), FAST, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_a_training_that_diverges_is_told_and_not_kept(base: Path, tmp_path: Path) -> None:
    wild = FAST.model_copy(update={"learning_rate": 1.0, "epochs": 3})
    with pytest.raises(CheckpointInvalid, match=r"'.*own' would be too far"):
        finetune(base, pico_examples(50), wild, tmp_path / "out" / "own")
    assert list((tmp_path / "out").iterdir()) == []


def test_rows_caps_the_texts(base: Path, tmp_path: Path) -> None:
    capped = FAST.model_copy(update={"rows": 10})
    finetune(base, pico_examples(30), capped, tmp_path / "capped")
    finetune(base, pico_examples(30).first(10), FAST, tmp_path / "cut")
    assert Checkpoint(tmp_path / "capped").sha256 == Checkpoint(tmp_path / "cut").sha256


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 50])
def test_buckets_hold_every_row_once_an_epoch(rows: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 5, rows).tolist()
    buckets = module._Buckets(lengths, 8, np.random.default_rng(1))
    for _ in range(2):
        epoch = list(buckets)
        assert len(epoch) == len(buckets)
        assert sorted(row for batch in epoch for row in batch) == list(range(rows))
        # Sorted: the intervals of the batches' lengths overlap in their ends at most.
        ends = sorted((min(each), max(each)) for each in ([lengths[r] for r in b] for b in epoch))
        assert all(ends[i][1] <= ends[i + 1][0] for i in range(len(ends) - 1))


def test_buckets_differ_from_epoch_to_epoch() -> None:
    buckets = module._Buckets([3] * 64, 8, np.random.default_rng(0))
    assert list(buckets) != list(buckets)


def test_the_key_changes_with_everything_that_decides_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key(base: str = "0", count: int = 9, **options: float) -> str:
        chosen = TrainingOptions.model_validate(options)
        return finetune_key(base * 64, pico_examples(count), chosen)

    keys = [
        key(),
        key(base="1"),
        key(count=8),
        key(epochs=4),
        key(learning_rate=1),
        key(batch_size=5),
        key(max_length=99),
        key(warmup=0.2),
        key(weight_decay=0.2),
        key(rows=3),
        key(seed=5),
    ]
    assert key() == keys[0] == key(rows=9) == key(rows=10)
    # In the namespace that the function looks into, whichever copy of the module that is.
    seen = finetune_key.__globals__
    bfloat16 = seen["has_bfloat16"]()
    monkeypatch.setitem(seen, "has_bfloat16", lambda: not bfloat16)
    keys.append(key())
    monkeypatch.setattr(seen["transformers"], "__version__", "0")
    keys.append(key())
    assert [keys.index(each) for each in keys] == list(range(13))


def test_the_cache_trains_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256, examples, cache = Checkpoint(base).sha256, pico_examples(9), tmp_path / "cache"
    out = cached_finetune(cache, base, sha256, examples, FAST)
    assert out == cache / finetune_key(sha256, examples, FAST)
    assert Checkpoint(out).shapes == Checkpoint(base).shapes
    monkeypatch.setattr(module, "finetune", lambda *_: pytest.fail("trained again"))
    assert cached_finetune(cache, base, sha256, examples, FAST) == out


def test_another_process_may_be_first(base: Path, tmp_path: Path) -> None:
    sha256, examples, cache = Checkpoint(base).sha256, pico_examples(9), tmp_path / "cache"
    theirs = cache / finetune_key(sha256, examples, FAST)

    def arrive(_done: int, _all: int) -> None:
        if not theirs.exists():
            shutil.copytree(base, theirs)

    assert cached_finetune(cache, base, sha256, examples, FAST, arrive) == theirs
    assert Checkpoint(theirs).sha256 == sha256
    assert list(cache.iterdir()) == [theirs]


def test_options_come_from_toml() -> None:
    table = tomllib.loads("learning_rate = 1\nweight_decay = 0\nepochs = 2")
    options = TrainingOptions.model_validate(table)
    assert type(options.learning_rate) is type(options.weight_decay) is float
    assert all(field.description for field in TrainingOptions.model_fields.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 2.0},
        {"epochs": True},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": "1e-4"},
        {"learning_rate": True},
        {"batch_size": 0},
        {"max_length": 3},
        {"warmup": 1},
        {"weight_decay": -0.1},
        {"rows": 0},
        {"seed": -1},
        {"lr": 0.1},
    ],
)
def test_options_are_bounded(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingOptions.model_validate(wrong)
