"""Reading words with tags: every format gives the same, every mistake is named, no word is told."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blindmerge.errors import DataInvalid
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.tasks import Label
from support.federations import json_lines
from support.pico import TAGS, pico_sentences

EXAMPLES = Examples(
    texts=(("Zoë", "lives"), ("in", "New", "York", "\u200b", " ")),
    labels=((0, 2), (2, 0, 1, 2, 2)),
)
PRIVATE = "diary"


def _write_jsonl(path: Path) -> None:
    path.write_text(json_lines(EXAMPLES, TAGS))


def _write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(json_lines(EXAMPLES, TAGS).encode()))


def _write_parquet(path: Path) -> None:
    rows = [json.loads(line) for line in json_lines(EXAMPLES, TAGS).splitlines()]
    pq.write_table(pa.Table.from_pylist([{"id": 7} | each for each in rows]), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", _write_jsonl), ("a.jsonl.gz", _write_gzip), ("a.parquet", _write_parquet)],
)
def test_every_format_gives_the_same(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / name)
    examples = read_examples(tmp_path / name, TAGS, "token-classification")
    assert examples == EXAMPLES
    assert examples.sha256 == EXAMPLES.sha256


def row(tokens: object, tags: object) -> bytes:
    return json.dumps({"tokens": tokens, "tags": tags}).encode()


GOOD = row(["a"], ["O"])
BROKEN: dict[str, tuple[bytes, str]] = {
    "not json": (GOOD + b'\n{"tokens": ["diary', r"row 2 is not JSON"),
    "texts": (b'{"text": "diary", "label": "O"}', r"row 1 has no 'tokens'"),
    "no tags": (b'{"tokens": ["diary"]}', r"row 1 has no 'tags'"),
    "text for tokens": (row("diary", ["O"]), r"row 1: the tokens are of type str, not a list"),
    "tag for tags": (row([PRIVATE], "O"), r"row 1: the tags are of type str, not a list"),
    "fewer tags": (GOOD + b"\n" + row([PRIVATE, "a"], ["O"]), r"row 2: 2 tokens come with 1 tags"),
    "number": (row([PRIVATE, 5], ["O", "O"]), r"row 1: the token 2 is of type int"),
    "surrogate": (row(["a", PRIVATE + "\ud800"], ["O", "O"]), r"row 1: the token 2 is not UTF-8"),
    "unknown tag": (
        row(["a", PRIVATE], ["O", PRIVATE]),
        r"row 1: the tag 2 is not one of the task's; allowed are 'B-MOOD', 'I-MOOD', 'O'",
    ),
    "index": (row([PRIVATE], [0]), r"row 1: the tag 1 is of type int"),
    "no words": (GOOD + b"\n" + row([], []), r"row 2: there are no words"),
    "blank words": (row([" ", ""], ["O", "O"]), r"row 1: there are no words"),
    "nothing": (b"", r"no examples"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_mistakes_are_named_without_the_words(case: str, tmp_path: Path) -> None:
    content, pattern = BROKEN[case]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataInvalid, match=pattern) as caught:
        read_examples(path, TAGS, "token-classification")
    assert path.name in caught.value.message
    assert PRIVATE not in caught.value.message + caught.value.hint
    assert caught.value.__cause__ is None


def test_csv_is_refused_with_the_formats_that_serve(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("tokens,tags\n['a'],['O']\n")
    with pytest.raises(DataInvalid, match=r"'.*a\.csv' is CSV") as caught:
        read_examples(tmp_path / "a.csv", TAGS, "token-classification")
    assert ".parquet" in caught.value.hint


def test_tags_for_a_task_of_texts_are_refused(tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(DataInvalid, match="has no 'text'"):
        read_examples(tmp_path / "a.jsonl", TAGS)


def test_pooled_is_one_part_after_another() -> None:
    parts = [pico_sentences(5, seed=seed) for seed in range(3)]
    pooled = Examples.pooled(parts)
    assert pooled.first(5) == parts[0]
    assert pooled.texts == parts[0].texts + parts[1].texts + parts[2].texts
    assert pooled.labels == parts[0].labels + parts[1].labels + parts[2].labels
    assert Examples.pooled([]) == Examples((), ())


def test_hash_tells_texts_from_words_and_where_words_end() -> None:
    others = [
        Examples(("ab",), (0,)),
        Examples((("ab",),), ((0,),)),
        Examples((("a", "b"),), ((0, 0),)),
        Examples((("a",), ("b",)), ((0,), (0,))),
        Examples((("a", "b"),), ((0, 1),)),
    ]
    assert len({examples.sha256 for examples in others}) == len(others)


def test_examples_fit_a_model_for_their_task_with_their_labels() -> None:
    texts, words = Examples(("a", "b"), (0, 2)), EXAMPLES
    assert texts.fit("single-label", 3)
    assert words.fit("token-classification", 3)
    assert not texts.fit("single-label", 2)
    assert not words.fit("token-classification", 2)
    assert not texts.fit("token-classification", 3)
    assert not words.fit("single-label", 3)


@pytest.mark.parametrize("labels", [((0,),), (0,), ((0, 1, 2),)])
def test_every_word_needs_a_label(labels: tuple[Label, ...]) -> None:
    assert not Examples((("a", "b"),), labels).fit("token-classification", 3)
