"""Checkpoints of any float dtype are merged; quantised ones and heads that do not fit are not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as torch_load
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import CheckpointInvalid, NotFinite
from blindmerge.fine_tuned import check_fine_tuned
from blindmerge.wire import from_wire, to_wire
from support.jobs import (
    LABELS,
    Job,
    edit_config,
    edit_weights,
    make_job,
    make_plan_for,
    noisy,
)
from support.merging import merge
from support.pico import pico_encoder

QUERY = "bert.encoder.layer.0.attention.self.query.weight"
NORM = "bert.encoder.layer.0.output.LayerNorm.weight"
HALVES: tuple[Any, ...] = (ml_dtypes.bfloat16, np.float16)
each_half = pytest.mark.parametrize("half", HALVES)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return pico_encoder(tmp_path / "base", labels=LABELS)


def cast(folder: Path, half: Any, keep: Callable[[str], bool] = lambda _: False) -> Path:
    """Every tensor in `half`, save those that are kept."""

    def change(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if not keep(name):
                tensors[name] = tensors[name].astype(half)

    return edit_weights(folder, change)


def dtypes(folder: Path) -> set[str]:
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stream:
            names = list(stream.keys())
            found |= {stream.get_slice(name).get_dtype() for name in names}
    return found


@each_half
def test_numbers_are_those_that_torch_reads(base: Path, half: Any) -> None:
    cast(base, half)
    checkpoint, state = Checkpoint(base), torch_load(base / "model.safetensors")
    for name, array in checkpoint.read(checkpoint.shapes).items():
        np.testing.assert_array_equal(array, state[name].double().numpy())


@each_half
def test_what_is_written_has_the_dtypes_of_the_base(base: Path, half: Any, tmp_path: Path) -> None:
    cast(base, half, keep=lambda name: name == NORM)
    checkpoint = Checkpoint(base)
    writer = CheckpointWriter(tmp_path / "out", checkpoint)
    for index, block in enumerate(checkpoint.manifest.blocks):
        written = writer.write(index, checkpoint.read(block.shapes))
        for name, array in writer.read(index).items():
            assert array.dtype == written[name].dtype == checkpoint.dtype(name)
    writer.finish()
    assert Checkpoint(tmp_path / "out").sha256 == checkpoint.sha256
    assert dtypes(tmp_path / "out") == dtypes(base)
    assert len(dtypes(base)) == 2
    loaded, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    assert torch.isfinite(loaded(torch.full((1, 4), 7)).logits).all()


@each_half
def test_numbers_are_rounded_to_the_nearest(base: Path, half: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(cast(base, half))
    weights = checkpoint.read(checkpoint.manifest.blocks[1].shapes)
    exact = np.random.default_rng(0).standard_normal(weights[QUERY].shape)
    writer = CheckpointWriter(tmp_path / "out", checkpoint)
    found = writer.write(1, weights | {QUERY: exact})[QUERY].astype(np.float64)
    # Half a unit in the last of 8 or 11 bits, and one rounding to float32 before.
    unit = {ml_dtypes.bfloat16: 2.0**-8, np.float16: 2.0**-11}[half]
    assert (np.abs(found - exact) <= (unit + 2.0**-24) * np.abs(exact) + 2.0**-25).all()


def test_what_float16_cannot_hold_is_refused_and_bfloat16_holds(base: Path, tmp_path: Path) -> None:
    for half in HALVES:
        folder = cast(shutil.copytree(base, tmp_path / np.dtype(half).name), half)
        checkpoint = Checkpoint(folder)
        weights = checkpoint.read(checkpoint.manifest.blocks[1].shapes)
        weights[QUERY][0, 0] = 1e6
        writer = CheckpointWriter(folder / "out", checkpoint)
        if half is np.float16:
            with pytest.raises(NotFinite, match=QUERY):
                writer.write(1, weights)
        else:
            assert writer.write(1, weights)[QUERY][0, 0] == np.float32(999424)  # 61 * 2^14


@each_half
def test_a_half_precision_base_takes_owners_of_any_dtype(
    base: Path, half: Any, tmp_path: Path
) -> None:
    own = noisy(base, tmp_path / "own", 1)
    cast(base, half)
    check_fine_tuned(Checkpoint(own), Checkpoint(base))
    check_fine_tuned(Checkpoint(cast(own, half)), Checkpoint(base))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bfloat16_crosses_the_wire() -> None:
    array = np.array([[1.5, -2.25, 3e38]]).astype(ml_dtypes.bfloat16)
    fields = to_wire(array)
    assert fields[0] == "bfloat16"
    assert len(fields[3]) == 6
    assert (
        fields[3] == torch.tensor([1.5, -2.25, 3e38]).bfloat16().view(torch.uint8).numpy().tobytes()
    )
    np.testing.assert_array_equal(from_wire(*fields), array)


def test_a_table_of_positions_is_passed_over(base: Path) -> None:
    before = Checkpoint(base)
    ids = np.arange(64)[None]
    edit_weights(base, lambda t: t.update({"bert.embeddings.position_ids": ids}))
    after = Checkpoint(base)
    assert after.shapes == before.shapes
    assert after.manifest == before.manifest
    assert after.sha256 == before.sha256


@each_half
def test_equal_owners_in_half_precision_come_back_bit_for_bit(half: Any, tmp_path: Path) -> None:
    one = make_job(tmp_path, owners=1, rows_factor=0.0)
    cast(one.base, half)
    own = Checkpoint(cast(one.owners[0], half))
    plan = make_plan_for(one.base, rows_factor=0.0)
    job = Job(one.base, one.owners * 3, one.texts * 3, plan, one.folder)
    assert Checkpoint(merge(job)).sha256 == own.sha256


def bits_of_a_quantised_layer(path: Path) -> None:
    edit_weights(path, lambda t: t.update({QUERY: np.zeros((128, 1), dtype=np.uint8)}))


def eight_bit_floats(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors[QUERY] = tensors[QUERY].astype(ml_dtypes.float8_e4m3fn)
    save_file(tensors, path / "model.safetensors")


QUANTISED: list[tuple[Any, str]] = [
    (
        lambda path: edit_config(path, quantization_config={"quant_method": "bitsandbytes"}),
        r"quantised \(bitsandbytes\)",
    ),
    (lambda path: edit_config(path, quantization_config={"bits": 4}), "are quantised"),
    (bits_of_a_quantised_layer, f"'{QUERY}' .* is U8"),
    (eight_bit_floats, f"'{QUERY}' .* is F8_E4M3"),
    (
        lambda path: edit_weights(path, lambda t: t.update({QUERY: t[QUERY].astype(np.int64)})),
        f"'{QUERY}' .* is I64",
    ),
]


@pytest.mark.parametrize(("spoil", "words"), QUANTISED)
def test_quantised_weights_are_refused(base: Path, spoil: Any, words: str) -> None:
    spoil(base)
    with pytest.raises(CheckpointInvalid, match=words) as raised:
        Checkpoint(base)
    assert "merge" in raised.value.message + raised.value.hint


def test_a_head_needs_an_output_for_each_label(base: Path) -> None:
    edit_config(base, id2label={"0": "no", "1": "yes"})
    with pytest.raises(CheckpointInvalid, match=r"'classifier' .* 3 outputs, .* 2 labels"):
        _ = Checkpoint(base).manifest
