"""What differs from task to task at an owner. No torch here: data are read without it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from blindmerge.errors import DataInvalid
from blindmerge.statistic import Array

__all__ = [
    "Form",
    "Head",
    "Image",
    "Label",
    "Outputs",
    "Pair",
    "Row",
    "Target",
    "TaskRules",
    "Text",
    "check_rows",
    "checked_label",
    "checked_list",
    "checked_text",
    "contents",
    "softmax",
    "whole_text",
]


class Pair(NamedTuple):
    """A text and what it is to become."""

    source: str
    target: str


class Image(NamedTuple):
    """An image in a file.   sha256: of the file; empty until it was looked at."""

    path: str
    sha256: str = ""


Text: TypeAlias = str | tuple[str, ...] | Pair | Image
"""A text as a whole, split into words, or with the one that it becomes; or an image."""
Label: TypeAlias = int | float | tuple[int, ...]
"""What belongs to a text: the index of its label, 0 or 1 for each label, a number, or an index for
each word."""
Target: TypeAlias = int | float | list[int] | list[float]
"""What the loss compares with: of a text, or of each of its tokens."""
Row: TypeAlias = Mapping[str, object]
"""A row of an owner's file, by column."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a row of a task looks like.

    sample: one as JSON.   read: the text and label of a row, from the row, the index of each
    label name, and the place for errors; it raises DataInvalid, which quotes nothing of the row.
    csv: makes a row of the texts of a CSV row; None if its fields hold what CSV cannot.
    """

    columns: tuple[str, ...]
    sample: str
    read: Callable[[Row, Mapping[str, int], str], tuple[Text, Label]]
    csv: Callable[[Row], Row] | None = lambda row: row


@dataclass(frozen=True, slots=True)
class Head:
    """How transformers puts a task's head on an encoder.

    auto: the class of transformers that loads a model with it.   classes: the table in
    transformers' `modeling_auto` with the name of that model's class by type of encoder.
    config: what the model's config gets beside the labels.
    tokenizer: how a tokenizer must be set, where it knows of such a thing.
    """

    auto: str
    classes: str
    config: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model said to a batch.

    logits: float64, a row per text; of a language model [texts, tokens, 2], the log-probability of
    what is to come and whether it is the likeliest, NaN where nothing is.
    inputs: of the model, by name.
    words: of each token the number of the word that it begins, or -1; None for whole texts.
    texts: those of the batch.   labels: the names of the head's outputs.
    """

    logits: Array
    inputs: Mapping[str, npt.NDArray[Any]]
    words: npt.NDArray[np.int64] | None
    texts: Sequence[Text]
    labels: Sequence[str]


@dataclass(frozen=True, slots=True)
class TaskRules:
    """How a task's data are read, its models fine-tuned, applied, combined and scored.

    fits: whether a model with so many labels can learn from a text and its label.
    target: what the loss compares with, from the tokens' words (see `Outputs`) and the label.
    padding: the target of padding, if there is one for each token; None if there is one a text.
    language: whether the outputs are for tokens of the vocabulary. Targets are then tokens, not
    what `target` says, and of the logits only what is said of them is kept (see `Outputs`).
    rows: predictions from the model's outputs, an array [rows, columns] for each text in turn.
    combine: the predictions of an ensemble, from those of each model, all rows at once.
    score: the metrics of the task by id (`METRICS`), from the predictions for all texts, the
    labels of the texts, and the names of the head's outputs.   Raises DataInvalid if they do not
    fit.
    """

    form: Form
    head: Head
    fits: Callable[[Text, Label, int], bool]
    target: Callable[[Sequence[int] | None, Label], Target]
    rows: Callable[[Outputs], Iterator[Array]]
    combine: Callable[[Sequence[Array]], Array]
    score: Callable[[Array, Sequence[Label], Sequence[str]], Mapping[str, float]]
    padding: int | None = None
    language: bool = False


def contents(texts: Sequence[Text]) -> tuple[str | tuple[str, ...], ...]:
    """What can be hashed of texts: of an image, the hash of its file."""
    return tuple(("image", text.sha256) if isinstance(text, Image) else text for text in texts)


def softmax(logits: Array) -> Array:
    """Probabilities [rows, labels]; rows add up to 1."""
    # The largest logit becomes 0, so that exp does not overflow.
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def checked_text(text: object, what: str, where: str) -> str:
    """A text of a row.   Raises DataInvalid unless it is a string that UTF-8 can encode."""
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


def whole_text(fields: Row, column: str, where: str) -> str:
    """The same, of a text that must not be empty."""
    text = checked_text(fields[column], column, where)
    if not text.strip():
        raise DataInvalid(f"{where}: the {column} is empty", hint="leave such rows out")
    return text


def checked_list(fields: Row, column: str, where: str) -> Sequence[object]:
    """A list of a row.   Raises DataInvalid if it is none."""
    value = fields[column]
    if not isinstance(value, list):
        raise DataInvalid(f"{where}: the {column} are of type {type(value).__name__}, not a list")
    return value


def checked_label(label: object, what: str, index: Mapping[str, int], where: str) -> int:
    """The index of a label.   Raises DataInvalid, which does not quote it, if it has none."""
    if isinstance(label, str) and label in index:
        return index[label]
    found = "not one of the task's" if isinstance(label, str) else f"of type {type(label).__name__}"
    raise DataInvalid(
        f"{where}: the {what} is {found}; allowed are {', '.join(map(repr, index))}",
        hint="correct the file, or the list of labels of the task",
    )


def check_rows(predictions: Array, labels: int) -> None:
    """Raises DataInvalid unless there are labels, and one row of predictions for each."""
    if labels == 0 or len(predictions) != labels:
        raise DataInvalid(f"{len(predictions)} predictions cannot be scored on {labels} labels")
