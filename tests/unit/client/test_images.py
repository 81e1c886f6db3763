"""Rows that name image files: found, bounded, decoded once, and named where they are wrong."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, DataInvalid
from blindmerge_client import images as module
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.finetune import finetune, prepare_base
from blindmerge_client.images import decoded
from blindmerge_client.models import load_tokenizer
from blindmerge_client.options import TrainingOptions
from blindmerge_client.predict import predict
from blindmerge_client.scores import score
from blindmerge_client.tasks import Image
from support.jobs import edit_config
from support.pico_vision import SHADES, pico_images, pico_vision

TASK: Any = "image-classification"
RED = np.full((5, 7, 3), (200, 10, 10), dtype=np.uint8)


def rows(folder: Path, *images: object, labels: str = "dark") -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"image": i, "label": labels}) + "\n" for i in images))
    return path


def test_paths_are_relative_to_the_file_and_hashes_are_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/red.png", "red.jpg", "red.webp"):
        PIL.Image.fromarray(RED).save(tmp_path / name)
    absolute = str(tmp_path / "red.webp")
    examples = read_examples(rows(tmp_path, "b/red.png", "red.jpg", absolute), SHADES, TASK)
    assert examples.fit(TASK, 2)
    for image, name in zip(examples.texts, ("b/red.png", "red.jpg", "red.webp"), strict=True):
        assert isinstance(image, Image)
        assert Path(image.path) == tmp_path / name
        assert image.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert np.abs(np.asarray(decoded(image)).astype(int) - RED).max() <= 6  # JPEG, WebP


def test_csv_names_images_too(tmp_path: Path) -> None:
    PIL.Image.fromarray(RED).save(tmp_path / "red.png")
    (tmp_path / "a.csv").write_text("image,label\nred.png,bright\n")
    examples = read_examples(tmp_path / "a.csv", SHADES, TASK)
    assert examples.labels == (1,)


def test_the_same_images_elsewhere_are_the_same_examples(tmp_path: Path) -> None:
    one, two = (pico_images(tmp_path / name, 3) for name in ("one", "two"))
    assert one.texts != two.texts
    assert one.sha256 == two.sha256
    assert pico_images(tmp_path / "one", 3, seed=1).sha256 != one.sha256


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_images_of_every_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    picture: Any = PIL.Image.new(mode, (4, 3))
    picture.save(tmp_path / "a.png")
    (image,) = read_examples(rows(tmp_path, "a.png"), SHADES, TASK).texts
    assert isinstance(image, Image)
    assert (decoded(image).mode, decoded(image).size) == ("RGB", (4, 3))


def test_a_photograph_that_was_taken_sideways_is_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    PIL.Image.fromarray(RED).save(tmp_path / "a.jpg", exif=exif)
    (image,) = read_examples(rows(tmp_path, "a.jpg"), SHADES, TASK).texts
    assert isinstance(image, Image)
    assert decoded(image).size == (5, 7)


def cut(folder: Path) -> str:
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        folder / "a.png"
    )
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[: len(data) // 2])
    return "a.png"


def text(folder: Path) -> str:
    (folder / "a.png").write_text("no image")
    return "a.png"


def another_format(folder: Path) -> str:
    PIL.Image.fromarray(RED).save(folder / "a.gif")
    return "a.gif"


def subfolder(folder: Path) -> str:
    (folder / "a").mkdir()
    return "a"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: "absent.png", "no such image file"),
        (subfolder, "cannot be read"),
        (text, "not an intact JPEG, PNG, WEBP"),
        (cut, "not an intact JPEG, PNG, WEBP"),
        (another_format, "not an intact JPEG, PNG, WEBP"),
        (lambda _: "", "the image is no path"),
        (lambda _: "a\0b", "the image is no path"),
        (lambda _: 3, "of type int, not a string"),
    ],
)
def test_mistakes_are_named_by_their_row(make: Any, words: str, tmp_path: Path) -> None:
    PIL.Image.fromarray(RED).save(tmp_path / "red.png")
    path = rows(tmp_path, "red.png", make(tmp_path))
    with pytest.raises(DataInvalid, match=words) as raised:
        read_examples(path, SHADES, TASK)
    assert "row 2" in raised.value.message


def test_a_label_that_is_none_is_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(RED).save(tmp_path / "red.png")
    with pytest.raises(DataInvalid, match="label is not one of the task's"):
        read_examples(rows(tmp_path, "red.png", labels="purple"), SHADES, TASK)


def test_large_files_and_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PIL.Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")  # 110 kB, decoded 900 MB
    with pytest.raises(DataInvalid, match="more than 67,108,864 pixels"):
        read_examples(rows(tmp_path, "bomb.png"), SHADES, TASK)
    PIL.Image.fromarray(RED).save(tmp_path / "red.png")
    monkeypatch.setattr(module, "_FILE_BYTES", 10)
    with pytest.raises(DataInvalid, match="the image file is larger than"):
        read_examples(rows(tmp_path, "red.png"), SHADES, TASK)


def test_an_image_that_was_exchanged_is_noticed(tmp_path: Path) -> None:
    PIL.Image.fromarray(RED).save(tmp_path / "a.png")
    (image,) = read_examples(rows(tmp_path, "a.png"), SHADES, TASK).texts
    PIL.Image.fromarray(255 - RED).save(tmp_path / "a.png")
    assert isinstance(image, Image)
    with pytest.raises(DataInvalid, match="has changed since"):
        decoded(image)


def test_images_do_not_fit_tasks_of_texts() -> None:
    examples = Examples((Image("a.png", "0" * 64),), (0,))
    assert examples.fit(TASK, 2)
    assert not examples.fit("single-label", 2)
    assert not examples.fit("token-classification", 2)
    assert not Examples(("a text",), (0,)).fit(TASK, 2)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_classifier_learns_from_images(kind: Any, tmp_path: Path) -> None:
    base, own = tmp_path / "base", tmp_path / "own"
    prepare_base(pico_vision(tmp_path / "source", kind), SHADES, 0, base, TASK)
    options = TrainingOptions(epochs=4, learning_rate=5e-3, batch_size=16)
    finetune(base, pico_images(tmp_path / "train", 64), options, own)
    assert Checkpoint(own).shapes == Checkpoint(base).shapes
    test = pico_images(tmp_path / "test", 40, seed=1)
    found = score(TASK, predict(own, test.texts, 64), test, SHADES)
    # Nearly all pixels of a bright image are brighter; 34 of 40 by chance has probability 1e-6.
    assert found.metrics["accuracy"] > 0.84


def test_the_image_processor_is_part_of_the_base(tmp_path: Path) -> None:
    base = pico_vision(tmp_path / "base", "clip")
    before = Checkpoint(base).sha256
    edit_config(base, "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    assert Checkpoint(base).sha256 != before


def test_a_broken_image_processor_is_named(tmp_path: Path) -> None:
    base = pico_vision(tmp_path / "base", "clip")
    (base / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointInvalid, match="image processor"):
        load_tokenizer(base)
