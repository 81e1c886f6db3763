"""What models can do: the labels of each task, and the scores by which its models are judged."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["LANGUAGE", "METRICS", "Metric", "Task", "are_tags", "check_labels"]

Task: TypeAlias = Literal[
    "single-label",
    "multi-label",
    "regression",
    "token-classification",
    "causal-lm",
    "seq2seq",
    "image-classification",
]
"""What a model says of every text: one label, any number of them, a number, or a tag for every
word of it; or what comes next, or what it becomes; or of every image: one label."""

LANGUAGE: frozenset[Task] = frozenset({"causal-lm", "seq2seq"})
"""The tasks without labels, whose outputs are the tokens of the vocabulary."""


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
        """A value as people read it, without the sign for percent."""
        return f"{100 * value:.1f}" if self.percent else f"{value:.3g}"

    def goodness(self, value: float) -> float:
        """What is higher for a better model."""
        return value if self.higher_is_better else -value


_ACCURACY = Metric("accuracy", "accuracy")
_PERPLEXITY = Metric("perplexity", "perplexity", 1.0, math.inf, higher_is_better=False)

METRICS: Mapping[Task, tuple[Metric, ...]] = {
    "single-label": (_ACCURACY, Metric("f1", "macro-F1")),
    "multi-label": (Metric("micro_f1", "micro-F1"), Metric("macro_f1", "macro-F1")),
    "regression": (
        Metric("mse", "mean squared error", most=math.inf, higher_is_better=False),
        Metric("pearson", "Pearson's r", least=-1.0),
        Metric("spearman", "Spearman's rho", least=-1.0),
    ),
    "token-classification": (_ACCURACY, Metric("f1", "entity F1")),
    "causal-lm": (_PERPLEXITY, Metric("accuracy", "next-token accuracy")),
    "seq2seq": (
        _PERPLEXITY,
        Metric("exact_match", "exact match"),
        Metric("accuracy", "token accuracy"),
    ),
    "image-classification": (_ACCURACY, Metric("f1", "macro-F1")),
}
"""The scores of each task, two or more: tables and plots show two, and the first one chooses."""


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


def _one(labels: Sequence[str]) -> None:
    if len(labels) != 1:
        raise ValueError("a regression has one label: what its number is called")


def _none(labels: Sequence[str]) -> None:
    if labels:
        raise ValueError("a language model has no labels")


def _tags(labels: Sequence[str]) -> None:
    if not are_tags(labels):
        raise ValueError('tags of words are "O" and, for each type of entity, "B-..." or "I-..."')


_LABELS: Mapping[Task, Callable[[Sequence[str]], None]] = {
    "single-label": _several,
    "multi-label": _several,
    "regression": _one,
    "token-classification": _tags,
    "causal-lm": _none,
    "seq2seq": _none,
    "image-classification": _several,
}
