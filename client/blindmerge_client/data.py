"""An owner's examples: texts with one label each, read from a file of the owner's.

Formats by suffix: `.jsonl`, `.jsonl.gz`, `.csv` (UTF-8, one header row, RFC 4180 quotes) and
`.parquet`. Each row has a `text` and a `label`, which is one of the job's label names.
No error quotes a text, nor a label: a text in the wrong column looks like one.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow
import pyarrow.parquet

from blindmerge import canonical
from blindmerge.errors import DataInvalid

__all__ = ["SUFFIXES", "Examples", "read_examples"]

_COLUMNS = ("text", "label")


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    labels[i] is the index of the label of texts[i] in the job's list of labels.
    Raises DataInvalid if the two differ in length.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise DataInvalid(f"{len(self.texts)} texts come with {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def sha256(self) -> str:
        """Hash of texts, labels and their order; the same in whatever file they came."""
        content = canonical.encode({"texts": self.texts, "labels": self.labels})
        return hashlib.sha256(content).hexdigest()

    def first(self, n: int) -> "Examples":
        """The first n examples, or all if there are fewer."""
        return Examples(self.texts[:n], self.labels[:n])


def read_examples(path: Path, labels: Sequence[str]) -> Examples:
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
    index = {name: number for number, name in enumerate(labels)}
    texts: list[str] = []
    numbers: list[int] = []
    rows = read(path)
    while (fields := _next(rows, path, len(texts))) is not None:
        where = f"'{path}' row {len(texts) + 1}"
        texts.append(_checked_text(fields, where))
        numbers.append(_checked_label(fields, index, where))
    if not texts:
        raise DataInvalid(f"'{path}' holds no examples", hint="every split needs at least one row")
    return Examples(tuple(texts), tuple(numbers))


_Row = Mapping[str, object]


def _next(rows: Iterator[_Row], path: Path, done: int) -> _Row | None:
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
            hint='one object a line: {"text": "...", "label": "..."}',
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


def _checked_text(fields: _Row, where: str) -> str:
    text = fields["text"]
    if not isinstance(text, str):
        raise DataInvalid(f"{where}: the text is of type {type(text).__name__}, not a string")
    if not text.strip():
        raise DataInvalid(f"{where}: the text is empty", hint="leave such rows out")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataInvalid(
                f"{where}: the text is not UTF-8", hint="it holds half of a surrogate pair"
            ) from None
    return text


def _checked_label(fields: _Row, index: Mapping[str, int], where: str) -> int:
    label = fields["label"]
    if isinstance(label, str) and label in index:
        return index[label]
    found = "not one of the task's" if isinstance(label, str) else f"of type {type(label).__name__}"
    raise DataInvalid(
        f"{where}: the label is {found}; allowed are {', '.join(map(repr, index))}",
        hint="correct the file, or the list of labels of the task",
    )


def _missing(path: Path, column: str, row: int | None = None) -> DataInvalid:
    where = f"'{path}'" if row is None else f"'{path}' row {row}"
    return DataInvalid(
        f"{where} has no '{column}'", hint=f"the fields are {' and '.join(_COLUMNS)}"
    )


def _jsonl(path: Path) -> Iterator[_Row]:
    with path.open("rb") as lines:
        yield from _json_rows(path, lines)


def _jsonl_gz(path: Path) -> Iterator[_Row]:
    with gzip.open(path, "rb") as lines:
        yield from _json_rows(path, lines)


def _json_rows(path: Path, lines: Iterator[bytes]) -> Iterator[_Row]:
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
        for column in _COLUMNS:
            if column not in value:
                raise _missing(path, column, row)
        yield value


def _csv(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for column in _COLUMNS:
            if column not in (reader.fieldnames or ()):
                raise _missing(path, column)
        for row, fields in enumerate(reader, start=1):
            # DictReader files surplus values under None and fills missing ones with None.
            if None in fields or None in fields.values():
                raise DataInvalid(
                    f"'{path}' row {row} has more or fewer fields than the header",
                    hint="put texts with commas or line breaks in double quotes",
                )
            yield fields


def _parquet(path: Path) -> Iterator[_Row]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for column in _COLUMNS:
            if column not in file.schema_arrow.names:
                raise _missing(path, column)
        for batch in file.iter_batches(columns=list(_COLUMNS)):
            yield from batch.to_pylist()


SUFFIXES: Mapping[str, Callable[[Path], Iterator[_Row]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".csv": _csv,
    ".parquet": _parquet,
}
