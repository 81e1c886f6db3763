"""Embeddings that are stored a second time, as the output layer, are merged once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid
from support.jobs import edit_config, edit_weights
from support.pico import pico_encoder

WORDS, OUTPUT = "transformer.wte.weight", "lm_head.weight"


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return pico_encoder(tmp_path / "base", "gpt2", task="causal-lm")


def store_twice(folder: Path, off: float = 0.0) -> Path:
    def change(tensors: dict[str, Any]) -> None:
        tensors[OUTPUT] = tensors[WORDS] + np.float32(off)

    return edit_weights(folder, change)


def test_a_copy_is_passed_over(tied: Path) -> None:
    before = Checkpoint(tied)
    assert OUTPUT not in before.shapes
    after = Checkpoint(store_twice(tied))
    assert after.manifest == before.manifest
    assert after.sha256 == before.sha256


def test_a_copy_that_differs_is_refused(tied: Path) -> None:
    edit_config(store_twice(tied, off=1e-3), tie_word_embeddings=True)
    with pytest.raises(CheckpointInvalid, match=f"'{OUTPUT}' .* differs from '{WORDS}'"):
        Checkpoint(tied)


def test_a_model_that_ties_nothing_keeps_both(tied: Path) -> None:
    edit_config(store_twice(tied), tie_word_embeddings=False)
    assert Checkpoint(tied).shapes.keys() >= {OUTPUT, WORDS}
