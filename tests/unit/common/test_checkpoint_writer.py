"""Merged checkpoints are written block by block: a shard is whole or absent."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import CheckpointInvalid, NotFinite, ResourceMissing, SchemaMismatch
from blindmerge.merge import Progressive
from support.jobs import LABELS, edit_weights
from support.pico import Architecture, pico_encoder

ARCHITECTURES: tuple[Architecture, ...] = ("bert", "roberta", "distilbert")
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return pico_encoder(tmp_path / "base", labels=LABELS)


def weights_of(base: Path, index: int) -> dict[str, Any]:
    checkpoint = Checkpoint(base)
    return checkpoint.read(checkpoint.manifest.blocks[index].shapes)


def write_all(writer: CheckpointWriter, base: Path, skip: int | None = None) -> None:
    for index in range(len(Checkpoint(base).manifest.blocks)):
        if index != skip:
            writer.write(index, weights_of(base, index))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_is_read_again(architecture: Architecture, tmp_path: Path) -> None:
    base = pico_encoder(tmp_path / "base", architecture, labels=LABELS)
    writer = CheckpointWriter(tmp_path / "out", Checkpoint(base))
    write_all(writer, base)
    writer.finish()
    assert Checkpoint(tmp_path / "out").sha256 == Checkpoint(base).sha256
    loaded, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    for name, tensor in loaded.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), Checkpoint(base).read([name])[name])


def test_blocks_of_the_callers_own_are_shards(base: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(base)
    blocks = Progressive().blocks_of(checkpoint.manifest)
    assert len(blocks) > len(checkpoint.manifest.blocks)
    writer = CheckpointWriter(tmp_path / "out", checkpoint, blocks)
    for index, block in enumerate(blocks):
        writer.write(index, checkpoint.read(block.shapes))
        assert writer.read(index).keys() == block.shapes.keys()
    writer.finish()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(blocks)
    assert Checkpoint(tmp_path / "out").sha256 == checkpoint.sha256


def test_an_unfinished_folder_does_not_load(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    writer = CheckpointWriter(out, Checkpoint(base))
    write_all(writer, base, skip=2)
    with pytest.raises(CheckpointInvalid, match=r"lacks the blocks bert\.encoder\.layer\.1"):
        writer.finish()
    shutil.copy(base / "config.json", out)
    with pytest.raises(CheckpointInvalid, match=r"has no model\.safetensors"):
        Checkpoint(out)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(out)


def test_writing_goes_on_where_it_stopped(base: Path, tmp_path: Path) -> None:
    write_all(CheckpointWriter(tmp_path / "out", Checkpoint(base)), base, skip=1)
    writer = CheckpointWriter(tmp_path / "out", Checkpoint(base))
    assert [writer.has(index) for index in range(4)] == [True, False, True, True]
    writer.write(1, weights_of(base, 1))
    writer.finish()
    assert Checkpoint(tmp_path / "out").sha256 == Checkpoint(base).sha256


def test_a_finished_folder_that_is_written_again_does_not_load_half_way(
    base: Path, tmp_path: Path
) -> None:
    writer = CheckpointWriter(tmp_path / "out", Checkpoint(base))
    write_all(writer, base)
    writer.finish()
    writer.write(0, {name: array + 1 for name, array in weights_of(base, 0).items()})
    with pytest.raises(CheckpointInvalid):
        Checkpoint(tmp_path / "out")
    writer.finish()
    assert Checkpoint(tmp_path / "out").sha256 != Checkpoint(base).sha256


@pytest.mark.parametrize(
    "spoil",
    [
        lambda weights: weights.pop(QUERY),
        lambda weights: weights.update(more=np.zeros(2)),
        lambda weights: weights.update({QUERY: weights[QUERY].T[:8]}),
        lambda weights: weights.update({QUERY: weights[QUERY].reshape(-1)}),
    ],
)
def test_tensors_of_another_block_are_not_written(base: Path, tmp_path: Path, spoil: Any) -> None:
    writer = CheckpointWriter(tmp_path / "out", Checkpoint(base))
    weights = weights_of(base, 1)
    spoil(weights)
    with pytest.raises(SchemaMismatch, match=r"bert\.encoder\.layer\.0"):
        writer.write(1, weights)
    assert not writer.has(1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e39])
def test_numbers_that_the_dtype_does_not_hold_are_not_written(
    base: Path, tmp_path: Path, number: float
) -> None:
    writer = CheckpointWriter(tmp_path / "out", Checkpoint(base))
    weights = weights_of(base, 1)
    weights[QUERY][0, 0] = number
    with pytest.raises(NotFinite, match=QUERY):
        writer.write(1, weights)
    assert not writer.has(1)


def test_half_precision_stays_and_overflow_is_refused(base: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, Any]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].astype(np.float16)

    edit_weights(base, halve)
    writer = CheckpointWriter(tmp_path / "out", Checkpoint(base))
    weights = weights_of(base, 1)
    # 65504 is the largest float16; from 65520 on it rounds to infinity.
    weights[QUERY][0, 0] = 65519.0
    written = writer.write(1, weights)
    assert {array.dtype for array in written.values()} == {np.dtype(np.float16)}
    assert written[QUERY][0, 0] == 65504
    weights[QUERY][0, 0] = 65520.0
    with pytest.raises(NotFinite, match=QUERY):
        writer.write(1, weights)


def test_a_full_disk_leaves_no_half_of_a_shard(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    writer = CheckpointWriter(tmp_path / "out", Checkpoint(base))
    weights = weights_of(base, 1)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceMissing, match="disk is full"):
        writer.write(1, weights)
    assert list((tmp_path / "out").iterdir()) == []
