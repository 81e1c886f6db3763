"""An owner's examples: texts or words with their labels, read from a file of the owner's.

Formats by suffix: `.jsonl`, `.jsonl.gz`, `.csv` (UTF-8, one header row, RFC 4180 quotes) and
`.parquet`. What a row has depends on the task:

    single-label           `text`, and `label`, one of the job's label names
    token-classification   `tokens`, a list of words, and `tags`, a label name for each of them;
                           no CSV, whose fields are no lists
No error quotes a text, nor a label: a text in the wrong column looks like one.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import pyarrow
import pyarrow.parquet

from blindmerge import canonical
from blindmerge.errors import DataInvalid
from blindmerge.manifest import Task

__all__ = ["SUFFIXES", "Examples", "Label", "Text", "read_examples"]

Text: TypeAlias = str | tuple[str, ...]
"""A text as a whole, or split into words."""
Label: TypeAlias = int | tuple[int, ...]
"""The label of a text, or one for each word: indices into the job's list of labels."""


@dataclass(frozen=True)
class Examples:
    """Labelled texts: all whole with one label each, or all as words with a label each.

    labels[i] is the label of texts[i], or the labels of its words.
    Raises DataInvalid if the two differ in length.
    """

    texts: tuple[Text, ...]
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise DataInvalid(f"{len(self.texts)} texts come with {len(self.labels)} labels")
        for text, label in zip(self.texts, self.labels, strict=True):
            if not _pair_up(text, label):
                raise DataInvalid("a text does not come with one label, or one for each word")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def gold(self) -> tuple[int, ...]:
        """All labels one after another: one per text, or one per word."""
        labels = (label if isinstance(label, tuple) else (label,) for label in self.labels)
        return tuple(index for group in labels for index in group)

    @cached_property
    def sha256(self) -> str:
        """Hash of texts, labels and their order; the same in whatever file they came."""
        content = canonical.encode({"texts": self.texts, "labels": self.labels})
        return hashlib.sha256(content).hexdigest()

    def first(self, n: int) -> "Examples":
        """The first n examples, or all if there are fewer."""
        return Examples(self.texts[:n], self.labels[:n])

    @classmethod
    def pooled(cls, parts: Iterable["Examples"]) -> "Examples":
        """The examples of all parts, one part after another."""
        pairs = [pair for part in parts for pair in zip(part.texts, part.labels, strict=True)]
        return cls(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))

    def fit(self, task: Task, labels: int) -> bool:
        """Whether a model for this task, with so many labels, can learn from them all."""
        whole = task == "single-label"
        kinds = all(isinstance(text, str) == whole for text in self.texts)
        return kinds and all(0 <= index < labels for index in self.gold)


def _pair_up(text: Text, label: Label) -> bool:
    if isinstance(text, str) or isinstance(label, int):
        return isinstance(text, str) and isinstance(label, int)
    return len(text) == len(label)


def read_examples(path: Path, labels: Sequence[str], task: Task = "single-label") -> Examples:
    """The examples of a file, in its order.

    labels: the names allowed, in the order of the model's outputs.
    Raises DataInvalid, naming the file and the row (the first example is row 1), if the file
    or one of its rows is not as the module says, or if there is no row.
    """
    read = next((SUFFIXES[end] for end in SUFFIXES if path.name.lower().endswith(end)), None)
    if read is None:
        raise DataInvalid(
            f"'{path}' has no known suffix", hint=f"use one of {', '.join(sorted(SUFFIXES))}"
        )
    form = _FORMS[task]
    index = {name: number for number, name in enumerate(labels)}
    texts: list[Text] = []
    numbers: list[Label] = []
    rows = read(path, form)
    while (fields := _next(rows, path, form, len(texts))) is not None:
        text, label = form.read(fields, index, f"'{path}' row {len(texts) + 1}")
        texts.append(text)
        numbers.append(label)
    if not texts:
        raise DataInvalid(f"'{path}' holds no examples", hint="every split needs at least one row")
    return Examples(tuple(texts), tuple(numbers))


_Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Form:
    """What a row of a task looks like.

    lists: whether its fields are lists.   sample: one as JSON.   read: the text and label of
    a row, from the row, the index of each label name, and the place for errors.
    """

    columns: tuple[str, str]
    lists: bool
    sample: str
    read: Callable[[_Row, Mapping[str, int], str], tuple[Text, Label]]


def _next(rows: Iterator[_Row], path: Path, form: _Form, done: int) -> _Row | None:
    """The next row or None at the end; whatever a format can raise becomes DataInvalid."""
    try:
        return next(rows, None)
    except FileNotFoundError:
        raise DataInvalid(f"there is no file '{path}'", hint="check the path") from None
    except UnicodeDecodeError:
        # `from None` here and below: the cause would carry bytes of a text.
        raise DataInvalid(
            f"'{path}' is not UTF-8 in or after row {done + 1}", hint="convert it to UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataInvalid(
            f"'{path}' row {done + 1} is not JSON: {error.msg}",
            hint=f"one object a line: {form.sample}",
        ) from None
    except csv.Error as error:
        raise DataInvalid(f"'{path}' row {done + 1} is not CSV: {error}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataInvalid(f"'{path}' is not an intact gzip file: {error}") from None
    except pyarrow.ArrowException:
        raise DataInvalid(f"'{path}' is not an intact Parquet file") from None
    except OSError as error:
        # Without a number it is pyarrow's, about a broken page of a Parquet file.
        reason = error.strerror or "it is not an intact file"
        raise DataInvalid(f"'{path}' cannot be read: {reason}") from None


def _whole(fields: _Row, index: Mapping[str, int], where: str) -> tuple[str, int]:
    text = _checked_text(fields["text"], "text", where)
    if not text.strip():
        raise DataInvalid(f"{where}: the text is empty", hint="leave such rows out")
    return text, _checked_label(fields["label"], "label", index, where)


def _words(
    fields: _Row, index: Mapping[str, int], where: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens, tags = _list(fields, "tokens", where), _list(fields, "tags", where)
    if len(tokens) != len(tags):
        raise DataInvalid(
            f"{where}: {len(tokens)} tokens come with {len(tags)} tags",
            hint="every token needs its tag",
        )
    words = tuple(_checked_text(each, f"token {n}", where) for n, each in enumerate(tokens, 1))
    if not any(word.strip() for word in words):
        raise DataInvalid(f"{where}: there are no words", hint="leave such rows out")
    return words, tuple(
        _checked_label(each, f"tag {n}", index, where) for n, each in enumerate(tags, 1)
    )


_FORMS: Mapping[Task, _Form] = {
    "single-label": _Form(("text", "label"), False, '{"text": "...", "label": "..."}', _whole),
    "token-classification": _Form(
        ("tokens", "tags"), True, '{"tokens": ["...", "..."], "tags": ["O", "..."]}', _words
    ),
}


def _list(fields: _Row, column: str, where: str) -> Sequence[object]:
    value = fields[column]
    if not isinstance(value, list):
        raise DataInvalid(f"{where}: the {column} are of type {type(value).__name__}, not a list")
    return value


def _checked_text(text: object, what: str, where: str) -> str:
    if not isinstance(text, str):
        raise DataInvalid(f"{where}: the {what} is of type {type(text).__name__}, not a string")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataInvalid(
                f"{where}: the {what} is not UTF-8", hint="it holds half of a surrogate pair"
            ) from None
    return text


def _checked_label(label: object, what: str, index: Mapping[str, int], where: str) -> int:
    if isinstance(label, str) and label in index:
        return index[label]
    found = "not one of the task's" if isinstance(label, str) else f"of type {type(label).__name__}"
    raise DataInvalid(
        f"{where}: the {what} is {found}; allowed are {', '.join(map(repr, index))}",
        hint="correct the file, or the list of labels of the task",
    )


def _check_columns(found: Iterable[object], form: _Form, where: str) -> None:
    missing = [column for column in form.columns if column not in found]
    if missing:
        raise DataInvalid(
            f"{where} has no '{missing[0]}'", hint=f"the fields are {' and '.join(form.columns)}"
        )


def _jsonl(path: Path, form: _Form) -> Iterator[_Row]:
    with path.open("rb") as lines:
        yield from _json_rows(path, lines, form)


def _jsonl_gz(path: Path, form: _Form) -> Iterator[_Row]:
    with gzip.open(path, "rb") as lines:
        yield from _json_rows(path, lines, form)


def _json_rows(path: Path, lines: Iterator[bytes], form: _Form) -> Iterator[_Row]:
    # Lines of bytes: text mode would also end a line at a bare carriage return.
    for row, line in enumerate(lines, start=1):
        try:
            value = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"))
        except (RecursionError, ValueError) as error:
            if isinstance(error, (UnicodeDecodeError, json.JSONDecodeError)):
                raise
            raise DataInvalid(f"'{path}' row {row} is not JSON that can be read") from None
        if not isinstance(value, dict):
            raise DataInvalid(f"'{path}' row {row} is a JSON {type(value).__name__}, not an object")
        _check_columns(value, form, f"'{path}' row {row}")
        yield value


def _csv(path: Path, form: _Form) -> Iterator[_Row]:
    if form.lists:
        raise DataInvalid(
            f"'{path}' is CSV, whose fields hold no lists of tokens", hint="use .jsonl or .parquet"
        )
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        _check_columns(reader.fieldnames or (), form, f"'{path}'")
        for row, fields in enumerate(reader, start=1):
            # DictReader files surplus values under None and fills missing ones with None.
            if None in fields or None in fields.values():
                raise DataInvalid(
                    f"'{path}' row {row} has more or fewer fields than the header",
                    hint="put texts with commas or line breaks in double quotes",
                )
            yield fields


def _parquet(path: Path, form: _Form) -> Iterator[_Row]:
    with pyarrow.parquet.ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, form, f"'{path}'")
        for batch in file.iter_batches(columns=list(form.columns)):
            yield from batch.to_pylist()


SUFFIXES: Mapping[str, Callable[[Path, _Form], Iterator[_Row]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".csv": _csv,
    ".parquet": _parquet,
}
