"""A merged model as an adapter: peft reads it, and what is lost is what the report says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.adapter import AdapterReport, write_adapter
from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid
from blindmerge.statistic import Array
from blindmerge_client.adapters import full_weights
from support.jobs import LABELS, edit_weights, noisy, weights_of
from support.pico import ARCHITECTURES, Architecture, pico_encoder

WORDS = "embeddings.word_embeddings.weight"


def written(
    folder: Path, rank: int, architecture: Architecture = "bert", keep: str = "embedding"
) -> tuple[Checkpoint, Checkpoint, AdapterReport, dict[str, Array]]:
    """Base, merged model, report, and the weights that peft makes of base and adapter.

    keep: tensors with this in their name are the base's in the merged model.
    """
    base = Checkpoint(pico_encoder(folder / "base", architecture, labels=LABELS))
    merged = noisy(base.path, folder / "merged", 3)
    before = base.read(base.shapes)

    def restore(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if keep and keep in name:
                tensors[name] = before[name].astype(np.float32)

    edit_weights(merged, restore)
    report = write_adapter(base, Checkpoint(merged), rank, folder / "adapter")
    return (
        base,
        Checkpoint(merged),
        report,
        weights_of(full_weights(folder / "adapter", base.path, folder / "full")),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_at_full_rank_peft_makes_the_merged_model_of_it(
    architecture: Architecture, tmp_path: Path
) -> None:
    _, merged, report, found = written(tmp_path, 32, architecture)
    exact = merged.read(merged.shapes)
    lost = {name for name in exact if name in report.lost}
    for name in exact.keys() - lost:
        # Sums of 16 products of float32 factors of size 0.1 on a weight of size 1.
        np.testing.assert_allclose(found[name], exact[name], rtol=0, atol=2.0**-22, err_msg=name)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_nearest_matrix_of_the_rank_is_kept(rank: int, tmp_path: Path) -> None:
    base, merged, report, found = written(tmp_path, rank)
    before, exact = base.read(base.shapes), merged.read(base.shapes)
    lost = total = 0.0
    errors = {each.layer: each.relative_error for each in report.layers}
    assert len(errors) == 2 * 6
    for name in exact:
        delta = exact[name] - before[name]
        total += np.sum(delta**2)
        expected = exact[name]
        layer = name.removesuffix(".weight")
        if layer in errors:
            values, vectors = np.linalg.eigh(delta.T @ delta)  # no SVD: another way to the subspace
            best = delta @ vectors[:, -rank:] @ vectors[:, -rank:].T
            expected = before[name] + best
            left = float(np.sum(np.clip(values[:-rank], 0, None)))
            lost += left
            ratio = np.sqrt(left / np.sum(delta**2))
            assert errors[layer] == pytest.approx(ratio, rel=1e-9)
            assert 0 < errors[layer] < 1
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2.0**-22, err_msg=name)
    assert report.relative_error == pytest.approx(np.sqrt(lost / total), rel=1e-9)
    assert report.lost == ()


def test_what_embeddings_moved_by_is_lost_and_counted(tmp_path: Path) -> None:
    base, merged, report, found = written(tmp_path, 32, keep="")
    assert f"bert.{WORDS}" in report.lost
    assert all("embeddings.weight" in name for name in report.lost)
    before, exact = base.read(base.shapes), merged.read(base.shapes)
    np.testing.assert_array_equal(found[f"bert.{WORDS}"], before[f"bert.{WORDS}"])
    squares = {name: np.sum((exact[name] - before[name]) ** 2) for name in exact}
    ratio = sum(squares[name] for name in report.lost) / sum(squares.values())
    assert report.relative_error == pytest.approx(np.sqrt(ratio), rel=1e-9)


def test_layers_that_did_not_move_have_no_factors(tmp_path: Path) -> None:
    _, _, report, _ = written(tmp_path, 2, keep="layer.1")
    assert len(report.layers) == 6
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2
    assert not any("layer.1" in name for name in config["target_modules"])


def test_models_without_a_change_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    base = Checkpoint(pico_encoder(tmp_path / "base", labels=LABELS))
    other = Checkpoint(pico_encoder(tmp_path / "other", labels=("a", "b")))
    with pytest.raises(CheckpointInvalid, match="same model"):
        write_adapter(base, base, 2, tmp_path / "adapter")
    with pytest.raises(CheckpointInvalid, match="not of one architecture"):
        write_adapter(base, other, 2, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
