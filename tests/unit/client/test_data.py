"""Reading examples: every format gives the same, every mistake is named, no text is told."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blindmerge.errors import DataInvalid
from blindmerge_client.data import Examples, read_examples

LABELS = ("negative", "positive")
TEXTS = ["plain", 'with "quotes", commas\nand a line break', "Grüße 🎉 \u2028", " padded "]
ROWS = list(zip(TEXTS, ["positive", "negative", "negative", "positive"], strict=True))
EXPECTED = Examples(tuple(TEXTS), (1, 0, 0, 1))
PRIVATE = "a private diary entry"


def _json(rows: list[tuple[str, str]]) -> bytes:
    lines = [json.dumps({"label": label, "text": text, "id": 7}) for text, label in rows]
    return "\n".join(lines).encode()


def _write_jsonl(path: Path) -> None:
    path.write_bytes(_json(ROWS))


def _write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(_json(ROWS) + b"\n"))


def _write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])


def _write_parquet(path: Path) -> None:
    texts, labels = zip(*ROWS, strict=True)
    table = pa.table({"text": texts, "label": pa.array(labels).dictionary_encode(), "id": range(4)})
    pq.write_table(table, path, row_group_size=3)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", _write_jsonl),
        ("a.jsonl.gz", _write_gzip),
        ("a.csv", _write_csv),
        ("A.Parquet", _write_parquet),
    ],
)
def test_every_format_gives_the_same(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / name)
    examples = read_examples(tmp_path / name, LABELS)
    assert examples == EXPECTED
    assert examples.sha256 == EXPECTED.sha256


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "unknown suffix": ("a.txt", b"x", r"suffix"),
    "empty file": ("a.jsonl", b"", r"no examples"),
    "header only": ("a.csv", b"text,label\n", r"no examples"),
    "empty csv": ("a.csv", b"", r"has no 'text'"),
    "broken json": ("a.jsonl", _json(ROWS) + b'\n{"text": "' + PRIVATE.encode(), r"row 5 .*JSON"),
    "blank line": ("a.jsonl", _json(ROWS) + b"\n\n", r"row 5 .*JSON"),
    "deep json": ("a.jsonl", b"[" * 100_000, r"row 1 .*JSON"),
    "huge integer": ("a.jsonl", b"1" * 5000, r"row 1 .*JSON"),
    "json list": ("a.jsonl", b"[1]", r"row 1 .*list"),
    "no text in row": ("a.jsonl", _json(ROWS) + b'\n{"label": "negative"}', r"row 5 .*'text'"),
    "no label column": ("a.csv", b"text,class\na,b\n", r"has no 'label'"),
    "unknown label": (
        "a.csv",
        b"text,label\na,negative\nb,mixed\n",
        r"row 2.*'negative', 'positive'",
    ),
    "index as label": ("a.jsonl", b'{"text": "a", "label": 1}', r"row 1.*type int"),
    "swapped columns": ("a.csv", f"label,text\n{PRIVATE},negative\n".encode(), r"row 1: the label"),
    "empty text": ("a.csv", b"text,label\n  ,negative\n", r"row 1: the text is empty"),
    "number as text": ("a.jsonl", b'{"text": 5, "label": "negative"}', r"row 1: .* int"),
    "null text": ("a.jsonl", b'{"text": null, "label": "negative"}', r"row 1: .* NoneType"),
    "half a surrogate": (
        "a.jsonl",
        b'{"text": "' + PRIVATE.encode() + b'\\ud800", "label": "negative"}',
        r"row 1: .*UTF-8",
    ),
    "latin-1 json": ("a.jsonl", f'{{"text": "{PRIVATE} é"}}'.encode("latin-1"), r"UTF-8.*row 1"),
    "latin-1 csv": ("a.csv", f"text,label\n{PRIVATE} é,x\n".encode("latin-1"), r"UTF-8"),
    "surplus field": ("a.csv", f"text,label\n{PRIVATE},x,negative\n".encode(), r"row 1 has more"),
    "missing field": ("a.csv", f"text,label\n{PRIVATE}\n".encode(), r"row 1 has .*fewer"),
    "text with a comma and no label": (
        "a.csv",
        f"text,label\nalas, {PRIVATE}\n".encode(),
        r"row 1: the label",
    ),
    "open quote": ("a.csv", f'text,label\n"{PRIVATE},negative\n'.encode(), r"row 1 is not CSV"),
    "no gzip": ("a.jsonl.gz", _json(ROWS), r"gzip"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(_json(ROWS))[:-9], r"gzip"),
    "corrupt gzip": ("a.jsonl.gz", gzip.compress(_json(ROWS))[:15] + b"\xff" * 50, r"gzip"),
    "no parquet": ("a.parquet", PRIVATE.encode(), r"Parquet"),
    "empty parquet": ("a.parquet", b"", r"Parquet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_mistakes_are_named_without_the_text(case: str, tmp_path: Path) -> None:
    name, content, pattern = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataInvalid, match=pattern) as caught:
        read_examples(path, LABELS)
    _names_the_file_not_the_text(caught.value, path)


@pytest.mark.parametrize(
    ("columns", "pattern"),
    [
        ({"text": ["a"], "class": ["negative"]}, r"has no 'label'"),
        ({"text": ["a", None], "label": ["negative"] * 2}, r"row 2: .* NoneType"),
        ({"text": [b"a"], "label": ["negative"]}, r"row 1: .* bytes"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, r"no examples"),
    ],
)
def test_mistakes_in_parquet_are_named(
    columns: dict[str, object], pattern: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataInvalid, match=pattern):
        read_examples(path, LABELS)


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    raw = pa.array([PRIVATE.encode() + b"\xff"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 1, raw.buffers())
    pq.write_table(pa.table({"text": text, "label": ["negative"]}), path)
    with pytest.raises(DataInvalid, match="UTF-8") as caught:
        read_examples(path, LABELS)
    _names_the_file_not_the_text(caught.value, path)


def test_cut_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[:20] + b"\xff" * 60 + content[80:])
    with pytest.raises(DataInvalid, match="intact"):
        read_examples(path, LABELS)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_missing_files_and_folders_are_named(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="there is no file"):
        read_examples(tmp_path / f"absent{suffix}", LABELS)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(DataInvalid, match="folder"):
        read_examples(tmp_path / f"folder{suffix}", LABELS)


def _names_the_file_not_the_text(error: DataInvalid, path: Path) -> None:
    assert path.name in error.message
    chain: list[BaseException | None] = [error]
    while (last := chain[-1]) is not None and not last.__suppress_context__:
        chain.append(last.__cause__ or last.__context__)
    told = "".join(f"{each} {vars(each)}" for each in chain if each is not None)
    assert "diary" not in told + error.hint


def test_hash_depends_on_texts_labels_and_order_alone() -> None:
    examples = Examples(("a", "bc"), (0, 1))
    others = [
        Examples(("ab", "c"), (0, 1)),
        Examples(("a", "bc"), (1, 0)),
        Examples(("bc", "a"), (1, 0)),
        Examples(("a",), (0,)),
    ]
    assert len({examples.sha256, *(other.sha256 for other in others)}) == 5
    assert Examples(("a", "bc"), (0, 1)).sha256 == examples.sha256


def test_first_cuts_both_columns() -> None:
    assert EXPECTED.first(2) == Examples(EXPECTED.texts[:2], EXPECTED.labels[:2])
    assert len(EXPECTED.first(3)) == 3
    assert EXPECTED.first(99) == EXPECTED


def test_texts_and_labels_must_pair_up() -> None:
    with pytest.raises(DataInvalid, match="2 texts"):
        Examples(("a", "b"), (0,))
