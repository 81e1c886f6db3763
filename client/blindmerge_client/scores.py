"""How good predictions are: accuracy, and the F1 score that is usual for the task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blindmerge.errors import DataInvalid
from blindmerge.manifest import Task
from blindmerge.statistic import Array
from blindmerge_client.data import Examples

__all__ = ["F1_NAMES", "Scores", "entities", "score"]

_Indices = npt.NDArray[np.intp]

F1_NAMES: Mapping[Task, str] = {
    "single-label": "macro-F1",
    "token-classification": "entity F1",
}


@dataclass(frozen=True, slots=True)
class Scores:
    """How good predictions are.

    accuracy: part of the texts, or of the words, with the right label.
    f1: of texts, the unweighted mean of F1 over the labels that occur in the gold labels; a
        label that is only predicted has no F1 of its own, and lowers those of others.
        Of words, F1 over all entities; an entity is right if its words and its type are.
        Without any entity, right or predicted, it is 0.
    examples: how many texts.
    """

    accuracy: float
    f1: float
    examples: int


def score(task: Task, predictions: Array, examples: Examples, labels: Sequence[str]) -> Scores:
    """Compares the labels with the highest logits or probabilities with the right ones.

    predictions: [rows, labels], a row per text or per word (see `predict`).
    labels: the names, in the order of the columns.
    Raises DataInvalid if there are no examples, or not one row for each label.
    """
    gold = np.asarray(examples.gold)
    if len(gold) == 0 or len(gold) != len(predictions):
        raise DataInvalid(f"{len(predictions)} predictions cannot be scored on {len(gold)} labels")
    predicted = predictions.argmax(axis=1)
    return Scores(
        accuracy=float(np.mean(predicted == gold)),
        f1=_F1[task](predicted, gold, examples, labels),
        examples=len(examples),
    )


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Type, start and end (exclusive) of each entity in the BIO tags of a text.

    As conlleval and seqeval by default: an `I-` that continues no entity of its type begins one.
    """
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            yield kind, start, place
            kind = ""
        if name and not kind:
            start, kind = place, name


def _macro_f1(
    predicted: _Indices, gold: _Indices, _examples: Examples, _labels: Sequence[str]
) -> float:
    return float(np.mean([_f1(predicted == label, gold == label) for label in np.unique(gold)]))


def _f1(predicted: npt.NDArray[np.bool_], gold: npt.NDArray[np.bool_]) -> float:
    """2 TP / (2 TP + FP + FN), whose denominator is |predicted| + |gold|; gold is not empty."""
    return float(2 * np.sum(predicted & gold) / (np.sum(predicted) + np.sum(gold)))


def _entity_f1(
    predicted: _Indices, gold: _Indices, examples: Examples, labels: Sequence[str]
) -> float:
    names = np.asarray(labels)
    ends = np.cumsum([len(text) for text in examples.texts])[:-1]
    right = total = 0
    for ours, theirs in zip(np.split(predicted, ends), np.split(gold, ends), strict=True):
        found, there = (set(entities(names[part].tolist())) for part in (ours, theirs))
        right += len(found & there)
        total += len(found) + len(there)
    return 2 * right / total if total else 0.0


_F1: Mapping[Task, Callable[[_Indices, _Indices, Examples, Sequence[str]], float]] = {
    "single-label": _macro_f1,
    "token-classification": _entity_f1,
}
