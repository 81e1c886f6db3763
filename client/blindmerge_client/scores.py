"""How good predictions are, by the metrics of the task (`blindmerge.tasks.METRICS`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.data import Examples
from blindmerge_client.tasks import TASKS

__all__ = ["Scores", "score"]


@dataclass(frozen=True, slots=True)
class Scores:
    """How good predictions are.   metrics: the task's, by id.   examples: how many texts."""

    metrics: Mapping[str, float]
    examples: int


def score(task: Task, predictions: Array, examples: Examples, labels: Sequence[str]) -> Scores:
    """Compares predictions with what is right.

    predictions: [rows, columns], of all texts (see `predict`), or of an ensemble.
    labels: the names, in the order of the head's outputs.
    Raises DataInvalid if there are no examples, or not one row for each label.
    """
    return Scores(TASKS[task].score(predictions, examples.labels, labels), len(examples))
