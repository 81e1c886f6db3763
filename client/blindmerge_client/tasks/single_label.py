"""One label for every text: `text`, and `label`, one of the job's label names."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from blindmerge.statistic import Array
from blindmerge_client.tasks.rules import (
    Form,
    Head,
    Label,
    Outputs,
    Row,
    Target,
    TaskRules,
    Text,
    check_rows,
    checked_label,
    softmax,
    whole_text,
)

__all__ = ["SINGLE_LABEL", "accuracy", "each_text", "f1_of", "mean_of_probabilities"]


def _read(fields: Row, index: Mapping[str, int], where: str) -> tuple[str, int]:
    text = whole_text(fields, "text", where)
    return text, checked_label(fields["label"], "label", index, where)


def _fits(text: Text, label: Label, labels: int) -> bool:
    return isinstance(text, str) and isinstance(label, int) and 0 <= label < labels


def _target(_words: Sequence[int] | None, label: Label) -> Target:
    return list(label) if isinstance(label, tuple) else label


def each_text(outputs: Outputs) -> Iterator[Array]:
    """The logits of each text, [1, labels]."""
    yield from outputs.logits[:, None]


def mean_of_probabilities(logits: Sequence[Array]) -> Array:
    """Of several models, [rows, labels].   logits: one array per model."""
    return np.asarray(np.mean([softmax(each) for each in logits], axis=0))


def accuracy(predicted: npt.NDArray[np.intp], gold: npt.NDArray[np.intp]) -> float:
    """Part of the rows with the right label."""
    return float(np.mean(predicted == gold))


def f1_of(predicted: npt.NDArray[np.bool_], gold: npt.NDArray[np.bool_]) -> float:
    """2 TP / (2 TP + FP + FN), whose denominator is |predicted| + |gold|; 0 if both are empty."""
    there = int(np.sum(predicted) + np.sum(gold))
    return float(2 * np.sum(predicted & gold) / there) if there else 0.0


def _score(
    predictions: Array, labels: Sequence[Label], _names: Sequence[str]
) -> Mapping[str, float]:
    """Accuracy, and the unweighted mean of F1 over the labels that occur in the gold labels; a
    label that is only predicted has no F1 of its own, and lowers those of others.
    """
    check_rows(predictions, len(labels))
    gold, predicted = np.asarray(labels), predictions.argmax(axis=1)
    f1 = [f1_of(predicted == label, gold == label) for label in np.unique(gold)]
    return {"accuracy": accuracy(predicted, gold), "f1": float(np.mean(f1))}


SINGLE_LABEL = TaskRules(
    form=Form(("text", "label"), '{"text": "...", "label": "..."}', _read),
    head=Head(
        auto="AutoModelForSequenceClassification",
        classes="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        config={"problem_type": "single_label_classification"},
    ),
    fits=_fits,
    target=_target,
    rows=each_text,
    combine=mean_of_probabilities,
    score=_score,
)
