"""A number for every text: `text`, and `label`, a finite number.

The job has one label, which is what the number is called.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from blindmerge.errors import DataInvalid
from blindmerge.statistic import Array
from blindmerge_client.tasks.rules import (
    Form,
    Head,
    Label,
    Row,
    Target,
    TaskRules,
    Text,
    check_rows,
    whole_text,
)
from blindmerge_client.tasks.single_label import each_text

__all__ = ["REGRESSION"]


def _read(fields: Row, _index: Mapping[str, int], where: str) -> tuple[str, float]:
    text, label = whole_text(fields, "text", where), fields["label"]
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise DataInvalid(f"{where}: the label is of type {type(label).__name__}, not a number")
    try:
        number = float(label)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataInvalid(f"{where}: the label is not a finite number")
    return text, number


def _from_csv(fields: Row) -> Row:
    try:
        return {**fields, "label": float(str(fields["label"]))}
    except ValueError:
        return fields  # a text in place of a number: refused as such


def _fits(text: Text, label: Label, labels: int) -> bool:
    return isinstance(text, str) and isinstance(label, int | float) and labels == 1


def _target(_words: Sequence[int] | None, label: Label) -> Target:
    return list(label) if isinstance(label, tuple) else float(label)


def _mean(numbers: Sequence[Array]) -> Array:
    return np.asarray(np.mean(numbers, axis=0))


def _score(
    predictions: Array, labels: Sequence[Label], _names: Sequence[str]
) -> Mapping[str, float]:
    """The mean squared error, and correlations, which are 0 if one side is constant."""
    from scipy.stats import rankdata  # half a second that no other task has to wait for

    check_rows(predictions, len(labels))
    gold, found = np.asarray(labels, dtype=float), predictions[:, 0]
    return {
        "mse": float(np.mean((found - gold) ** 2)),
        "pearson": _correlation(found, gold),
        "spearman": _correlation(rankdata(found), rankdata(gold)),
    }


def _correlation(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return max(-1.0, min(1.0, float(a @ b) / norms)) if norms > 0 else 0.0


REGRESSION = TaskRules(
    form=Form(("text", "label"), '{"text": "...", "label": 3.5}', _read, _from_csv),
    head=Head(
        auto="AutoModelForSequenceClassification",
        classes="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        config={"problem_type": "regression"},
    ),
    fits=_fits,
    target=_target,
    rows=each_text,
    combine=_mean,
    score=_score,
)
