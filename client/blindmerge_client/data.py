"""An owner's examples: texts or words with their labels, read from a file of the owner's.

Formats by suffix: `.jsonl`, `.jsonl.gz`, `.csv` (UTF-8, one header row, RFC 4180 quotes) and
`.parquet`. What a row has depends on the task (see `blindmerge_client.tasks`).
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

import pyarrow
import pyarrow.parquet

from blindmerge import canonical
from blindmerge.errors import DataInvalid
from blindmerge.tasks import Task
from blindmerge_client.images import found_image
from blindmerge_client.tasks import TASKS, Form, Image, Label, Row, Text, contents

__all__ = ["SUFFIXES", "Examples", "read_examples"]


@dataclass(frozen=True)
class Examples:
    """Texts with what belongs to them: labels[i] to texts[i], as their task has it.

    Raises DataInvalid if the two differ in length.
    """

    texts: tuple[Text, ...]
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise DataInvalid(f"{len(self.texts)} texts come with {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def sha256(self) -> str:
        """Hash of texts, labels and their order; the same in whatever file they came."""
        content = canonical.encode({"texts": contents(self.texts), "labels": self.labels})
        return hashlib.sha256(content).hexdigest()

    @cached_property
    def account(self) -> str:
        """What a ledger calls these examples: a hash of them in whatever order."""
        pairs = zip(self.texts, self.labels, strict=True)
        hashes = sorted(hashlib.sha256(canonical.encode(pair)).digest() for pair in pairs)
        return hashlib.sha256(b"".join(hashes)).hexdigest()

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
        fits = TASKS[task].fits
        pairs = zip(self.texts, self.labels, strict=True)
        return all(fits(text, label, labels) for text, label in pairs)


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
    form = TASKS[task].form
    index = {name: number for number, name in enumerate(labels)}
    texts: list[Text] = []
    numbers: list[Label] = []
    rows = read(path, form)
    while (fields := _next(rows, path, form, len(texts))) is not None:
        where = f"'{path}' row {len(texts) + 1}"
        text, label = form.read(fields, index, where)
        if isinstance(text, Image):
            text = found_image(text, path.parent, where)
        texts.append(text)
        numbers.append(label)
    if not texts:
        raise DataInvalid(f"'{path}' holds no examples", hint="every split needs at least one row")
    return Examples(tuple(texts), tuple(numbers))


def _next(rows: Iterator[Row], path: Path, form: Form, done: int) -> Row | None:
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


def _check_columns(found: Iterable[object], form: Form, where: str) -> None:
    missing = [column for column in form.columns if column not in found]
    if missing:
        raise DataInvalid(
            f"{where} has no '{missing[0]}'", hint=f"the fields are {' and '.join(form.columns)}"
        )


def _jsonl(path: Path, form: Form) -> Iterator[Row]:
    with path.open("rb") as lines:
        yield from _json_rows(path, lines, form)


def _jsonl_gz(path: Path, form: Form) -> Iterator[Row]:
    with gzip.open(path, "rb") as lines:
        yield from _json_rows(path, lines, form)


def _json_rows(path: Path, lines: Iterator[bytes], form: Form) -> Iterator[Row]:
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


def _csv(path: Path, form: Form) -> Iterator[Row]:
    if form.csv is None:
        raise DataInvalid(
            f"'{path}' is CSV, whose fields hold no lists of {form.columns[0]}",
            hint="use .jsonl or .parquet",
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
            yield form.csv(fields)


def _parquet(path: Path, form: Form) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, form, f"'{path}'")
        for batch in file.iter_batches(columns=list(form.columns)):
            yield from batch.to_pylist()


SUFFIXES: Mapping[str, Callable[[Path, Form], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".csv": _csv,
    ".parquet": _parquet,
}
