"""Bad input of a simulation: named, with the exit code of its kind, and before any work."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.command import blindmerge_here
from support.federations import LABELS, pico_federation
from support.jobs import edit_weights
from support.pico import pico_encoder


def _rows(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


GOOD = '{"text": "a good film", "label": "positive"}'


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def _remove(folder: Path) -> None:
    (folder / "gamma/train.jsonl").unlink()


def _replace(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "federation.toml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return spoil


def _is_a_folder(folder: Path) -> None:
    (folder / "alpha/train.jsonl").unlink()
    (folder / "alpha/train.jsonl").mkdir()


def _occupied(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/thesis.tex").touch()


def _checkpoint(**options: Any) -> Callable[[Path], None]:
    """The last owner brings a model that is made like this."""

    def spoil(folder: Path) -> None:
        pico_encoder(folder / "own", **options)
        with (folder / "federation.toml").open("a") as file:
            file.write('checkpoint = "own"\n')

    return spoil


def _not_finite(number: float) -> Callable[[Path], None]:
    """The last owner brings the base with a head, one of whose numbers is none."""

    def spoil(folder: Path) -> None:
        _checkpoint(labels=LABELS)(folder)
        encoder = folder / "encoder"
        shutil.rmtree(encoder)
        shutil.copytree(folder / "own", encoder)

        def change(tensors: dict[str, Any]) -> None:
            tensors["classifier.weight"] = np.full_like(tensors["classifier.weight"], number)

        edit_weights(folder / "own", change)

    return spoil


# name: what is spoilt, the exit code, and what the message must name
CASES: dict[str, tuple[Callable[[Path], None], int, tuple[str, ...]]] = {
    "a missing file": (_remove, 2, ("owner.gamma.train",)),
    "a folder for a file": (_is_a_folder, 2, ("owner.alpha.train",)),
    "no text at all": (_write("beta/test.jsonl", b"\xff\xfe\x00"), 3, ("beta/test.jsonl",)),
    "a text that is a number": (
        _write("alpha/train.jsonl", _rows(GOOD, '{"text": 7, "label": "positive"}')),
        3,
        ("alpha/train.jsonl", "text"),
    ),
    "a label that is not in the list": (
        _write("alpha/train.jsonl", _rows('{"text": "good", "label": "neutral"}')),
        3,
        ("alpha/train.jsonl", "label"),
    ),
    "an empty split": (_write("beta/test.jsonl", b""), 3, ("beta/test.jsonl",)),
    "an unknown key": (_replace("rows_factor", "ridgee"), 2, ("federation.toml", "ridgee")),
    "a missing base": (_replace('"encoder"', '"nowhere"'), 2, ("job.base",)),
    "another architecture": (
        _checkpoint(architecture="roberta", labels=LABELS),
        4,
        ("owner.gamma.checkpoint",),
    ),
    "another base": (_checkpoint(labels=LABELS, seed=5), 4, ("owner.gamma.checkpoint",)),
    "labels in another order": (
        _checkpoint(labels=LABELS[::-1]),
        4,
        ("owner.gamma.checkpoint", "label"),
    ),
    "NaN among the weights": (_not_finite(float("nan")), 4, ("classifier.weight",)),
    "infinity among the weights": (_not_finite(float("inf")), 4, ("classifier.weight",)),
    "results of something else": (_occupied, 2, ("thesis.tex",)),
}


@pytest.mark.parametrize("case", list(CASES))
def test_bad_input_is_named_before_any_work(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, code, words = CASES[case]
    pico_federation(tmp_path)
    spoil(tmp_path)
    before = sorted(tmp_path.glob("out/**"))
    cache = tmp_path / "cache"
    ended = blindmerge_here(
        "simulate", "federation.toml", "--out", "out", cwd=tmp_path, cache=cache
    )
    printed, errors = capsys.readouterr()
    assert ended == code, errors
    assert errors.startswith("blindmerge: error: ")
    assert "Traceback" not in errors
    for word in words:
        assert word in errors
    assert printed == ""
    assert sorted(tmp_path.glob("out/**")) == before
    assert not (cache / "models").exists()
    assert not list(cache.glob(".run-*"))
