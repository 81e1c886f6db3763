"""Checkpoints: what is read, what is refused, what two of them have in common."""

import json
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, UnknownTensor
from blindmerge.fine_tuned import check_fine_tuned
from support.jobs import LABELS, edit_config, edit_weights, noisy
from support.pico import Architecture, pico_encoder

ARCHITECTURES: tuple[Architecture, ...] = ("bert", "roberta", "distilbert")
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return pico_encoder(tmp_path / "base", labels=LABELS)


def shard(folder: Path, parts: int = 3) -> Path:
    """Spreads the tensors over files, every third one into the same."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for part in range(parts):
        names = sorted(tensors)[part::parts]
        save_file({name: tensors[name] for name in names}, folder / f"part{part}.safetensors")
        weight_map |= dict.fromkeys(names, f"part{part}.safetensors")
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_index(folder: Path) -> dict[str, str]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return dict(index["weight_map"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reads_what_transformers_has(architecture: Architecture, tmp_path: Path) -> None:
    folder = pico_encoder(tmp_path / "model", architecture, labels=LABELS)
    checkpoint = Checkpoint(folder)
    state = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert checkpoint.labels == LABELS
    for name, array in checkpoint.read(state).items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, state[name].numpy())


def test_shards_are_the_same_checkpoint_as_one_file(base: Path, tmp_path: Path) -> None:
    one, many = Checkpoint(base), Checkpoint(shard(shutil.copytree(base, tmp_path / "many")))
    assert many.sha256 == one.sha256
    assert many.manifest == one.manifest
    read = one.read(one.shapes)
    for name, array in many.read(many.shapes).items():
        np.testing.assert_array_equal(array, read[name])
    check_fine_tuned(many, one)


def one_number(folder: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        flat = tensors[QUERY].reshape(-1)
        flat[7] = np.nextafter(flat[7], np.float32(1))

    edit_weights(folder, add)


def swap_equal_shapes(folder: Path) -> None:
    def swap(tensors: dict[str, Any]) -> None:
        key = QUERY.replace("query", "key")
        tensors[QUERY], tensors[key] = tensors[key], tensors[QUERY]

    edit_weights(folder, swap)


def other_dtype(folder: Path) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        tensors[QUERY] = tensors[QUERY].astype(np.float64)

    edit_weights(folder, widen)


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))


@pytest.mark.parametrize(
    "change",
    [
        one_number,
        swap_equal_shapes,
        other_dtype,
        other_tokenizer,
        lambda path: edit_config(path, id2label={"0": "yes", "1": "no", "2": "maybe"}),
        lambda path: edit_config(path, layer_norm_eps=1e-5),
        lambda path: edit_config(path, "tokenizer_config.json", do_lower_case=False),
        lambda path: (path / "tokenizer.json").rename(path / "old.json"),
        lambda path: (path / "vocab.txt").write_text("[PAD]\nzebra\n"),
    ],
)
def test_the_hash_tells_apart_what_computes_something_else(base: Path, change: Any) -> None:
    before = Checkpoint(base).sha256
    contents = {file.name: file.read_bytes() for file in base.iterdir()}
    change(base)
    assert {file.name: file.read_bytes() for file in base.iterdir()} != contents
    assert Checkpoint(base).sha256 != before


def test_the_hash_does_not_see_what_changes_from_save_to_save(base: Path) -> None:
    before = Checkpoint(base).sha256
    edit_config(base, transformers_version="9", _name_or_path="/home/somebody", dtype="float16")
    edit_config(base, "tokenizer_config.json", is_local=True, name_or_path="elsewhere")
    (base / "README.md").write_text("A model.")
    assert Checkpoint(base).sha256 == before


def test_the_hash_survives_loading_and_saving(base: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base)
    model.save_pretrained(tmp_path / "again")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, tmp_path / "again")
    assert Checkpoint(tmp_path / "again").sha256 == Checkpoint(base).sha256


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def put(name: str, array: Any) -> Any:
    return lambda tensors: tensors.update({name: array})


def only_a_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def truncated(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def huge_header(path: Path) -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def index_points_to(file: str) -> Any:
    def change(path: Path) -> None:
        weight_map = read_index(shard(path))
        write_index(path, weight_map | {QUERY: file})

    return change


def index_lacks_a_tensor(path: Path) -> None:
    weight_map = read_index(shard(path))
    del weight_map[QUERY]
    write_index(path, weight_map)


def index_has_one_too_many(path: Path) -> None:
    write_index(path, read_index(shard(path)) | {"more": "part0.safetensors"})


def one_tensor_in_two_shards(path: Path) -> None:
    shard(path)
    tensors = load_file(path / "part0.safetensors")
    save_file(tensors | load_file(path / "part1.safetensors"), path / "part1.safetensors")


def one_shard_is_missing(path: Path) -> None:
    (shard(path) / "part1.safetensors").unlink()


UNREADABLE = [
    (lambda path: (path / "config.json").unlink(), r"config\.json' is missing"),
    (lambda path: (path / "config.json").write_text("{"), r"config\.json' is not a readable JSON"),
    (lambda path: (path / "config.json").write_bytes(b"\xff"), "is not a readable JSON"),
    (lambda path: (path / "config.json").write_text("[]"), "does not hold a JSON object"),
    (lambda path: edit_config(path, drop=["architectures"]), "names no architecture"),
    (lambda path: edit_config(path, id2label={"zero": "no"}), "id2label"),
    (lambda path: edit_config(path, id2label={"0": "no", "2": "yes"}), "id2label"),
    (lambda path: edit_config(path, id2label=["no", "yes"]), "id2label"),
    (only_a_pickle, r"has no model\.safetensors"),
    (truncated, "not a readable safetensors file"),
    (huge_header, "not a readable safetensors file"),
    (lambda path: write_index(shard(path), {}), "has no weight_map"),
    (lambda path: write_index(shard(path), ["part0"]), "has no weight_map"),
    (index_points_to("../secret.safetensors"), "points outside"),
    (index_points_to("/etc/passwd"), "points outside"),
    (index_points_to(".."), "points outside"),
    (index_points_to(""), "points outside"),
    (index_lacks_a_tensor, f"disagree.*'{QUERY}'"),
    (index_has_one_too_many, "disagree.*'more'"),
    (one_tensor_in_two_shards, "disagree"),
    (one_shard_is_missing, "part1.*not a readable"),
]


@pytest.mark.parametrize(("spoil", "words"), UNREADABLE)
def test_what_cannot_be_read_is_named(base: Path, spoil: Any, words: str) -> None:
    spoil(base)
    with pytest.raises(CheckpointInvalid, match=words) as raised:
        Checkpoint(base)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_named(base: Path, number: float) -> None:
    edit_weights(base, lambda tensors: tensors[QUERY].__setitem__((3, 4), number))
    checkpoint = Checkpoint(base)
    for read in (lambda: checkpoint.read([QUERY]), lambda: checkpoint.sha256):
        with pytest.raises(CheckpointInvalid, match=f"'{QUERY}'.*NaN or infinity") as raised:
            read()
        assert "learning rate" in raised.value.hint
    checkpoint.read(checkpoint.shapes.keys() - {QUERY})


def test_an_absent_tensor_cannot_be_read(base: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="no tensor 'more'"):
        Checkpoint(base).read(["more"])


def test_a_tensor_without_a_rule_is_named(base: Path) -> None:
    edit_weights(base, put("adapter.weight", np.zeros((2, 2), dtype=np.float32)))
    with pytest.raises(UnknownTensor, match=r"adapter\.weight"):
        _ = Checkpoint(base).manifest


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fine_tuned_model_passes(architecture: Architecture, tmp_path: Path) -> None:
    base = pico_encoder(tmp_path / "base", architecture, labels=LABELS)
    check_fine_tuned(Checkpoint(noisy(base, tmp_path / "own", 1)), Checkpoint(base))
    check_fine_tuned(Checkpoint(base), Checkpoint(base))


FOREIGN = [
    (lambda path: edit_weights(path, drop(QUERY)), f"'{QUERY}' is missing"),
    (
        lambda path: edit_weights(path, put("more", np.zeros(2, dtype=np.float32))),
        r"'more' is \[2\].*missing in the base",
    ),
    (
        lambda path: edit_weights(path, put(QUERY, np.zeros((16, 17), dtype=np.float32))),
        r"\[16, 17\].*\[16, 16\]",
    ),
    (lambda path: edit_config(path, architectures=["BertForMaskedLM"]), "is a BertForMaskedLM"),
    (lambda path: edit_config(path, id2label={"0": "a", "1": "b", "2": "c"}), r"\['a', 'b', 'c'\]"),
    (
        lambda path: edit_config(path, id2label={"0": "yes", "1": "no", "2": "maybe"}),
        r"\['yes', 'no', 'maybe'\].*\['no', 'yes', 'maybe'\]",
    ),
    (
        lambda path: edit_weights(
            path, lambda t: t["classifier.bias"].__setitem__(0, np.float32("nan"))
        ),
        r"classifier\.bias.*NaN",
    ),
]


@pytest.mark.parametrize(("spoil", "words"), FOREIGN)
def test_a_model_that_cannot_be_merged_is_refused(
    base: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    spoil(own)
    with pytest.raises(CheckpointInvalid, match=words):
        check_fine_tuned(Checkpoint(own), Checkpoint(base))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_pre_training_is_refused(architecture: Architecture, tmp_path: Path) -> None:
    base, other = (
        Checkpoint(pico_encoder(tmp_path / str(seed), architecture, seed=seed, labels=LABELS))
        for seed in (0, 1)
    )
    with pytest.raises(CheckpointInvalid, match=r"not fine-tuned from the base.*-?0\.0") as raised:
        check_fine_tuned(other, base)
    assert "same weights" in raised.value.hint


def test_all_zeros_are_refused(base: Path, tmp_path: Path) -> None:
    def clear(tensors: dict[str, Any]) -> None:
        for array in tensors.values():
            array[...] = 0

    own = edit_weights(shutil.copytree(base, tmp_path / "own"), clear)
    with pytest.raises(CheckpointInvalid, match=r"cosine.*0\.00"):
        check_fine_tuned(Checkpoint(own), Checkpoint(base))


def test_a_folder_is_hashed_again_when_a_file_of_it_changed_and_not_before(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = base / "model.safetensors"
    stamp, content = weights.stat(), bytearray(weights.read_bytes())
    # At once after it was written, when the clock of the files may not tell the change.
    before = Checkpoint(base).sha256
    content[-1] ^= 1  # sign or exponent of a number
    weights.write_bytes(content)
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = Checkpoint(base).sha256
    assert after != before
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert Checkpoint(base).sha256 == after
    monkeypatch.setattr(Checkpoint, "stored_numbers", None)
    assert Checkpoint(base).sha256 == after
    monkeypatch.undo()
    monkeypatch.setattr(time, "time_ns", lambda: later)
    weights.write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))
    assert Checkpoint(base).sha256 == before
