"""What models can do: the labels of each task, and the scores by which its models are judged."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["METRICS", "Metric", "Task", "are_tags", "check_labels"]

Task: TypeAlias = Literal["single-label", "token-classification"]
"""What a model does: one label for every text, or one tag for every word of it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of predictions.

    id: its name in files and messages.   name: for people.   least, most: what it can be.
    higher_is_better: or lower, for an error.
    """

    id: str
    name: str
    least: float = 0.0
    most: float = 1.0
    higher_is_better: bool = True

    @property
    def percent(self) -> bool:
        """Whether people read it in percent, since it has a largest value."""
        return not math.isinf(self.most)

    def shown(self, value: float) -> str:
        """A value as people read it."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"


_ACCURACY = Metric("accuracy", "accuracy")

METRICS: Mapping[Task, tuple[Metric, Metric]] = {
    "single-label": (_ACCURACY, Metric("f1", "macro-F1")),
    "token-classification": (_ACCURACY, Metric("f1", "entity F1")),
}
"""Two scores of each task; the first one chooses."""


def are_tags(labels: Sequence[str]) -> bool:
    """Whether labels are BIO tags: `O` and others, each `B-` or `I-` with the name of a type."""
    return "O" in labels and all(re.fullmatch(r"O|[BI]-.+", label) for label in labels)


def check_labels(task: Task, labels: Sequence[str]) -> None:
    """Raises ValueError, in the words of a person, if a task cannot have these labels."""
    if len(set(labels)) != len(labels):
        raise ValueError("a label occurs twice")
    _LABELS[task](labels)


def _several(labels: Sequence[str]) -> None:
    if len(labels) < 2:
        raise ValueError("a task needs at least two labels")


def _tags(labels: Sequence[str]) -> None:
    if not are_tags(labels):
        raise ValueError('tags of words are "O" and, for each type of entity, "B-..." or "I-..."')


_LABELS: Mapping[Task, Callable[[Sequence[str]], None]] = {
    "single-label": _several,
    "token-classification": _tags,
}
