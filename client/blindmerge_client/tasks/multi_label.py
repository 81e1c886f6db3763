"""Any number of labels for every text: `text`, and `labels`, a list of the job's label names.

The list may be empty. In CSV the names stand in one field, with semicolons between them.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from blindmerge.errors import DataInvalid
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
    checked_list,
    whole_text,
)
from blindmerge_client.tasks.single_label import f1_of

__all__ = ["MULTI_LABEL"]


def _read(fields: Row, index: Mapping[str, int], where: str) -> tuple[str, tuple[int, ...]]:
    text = whole_text(fields, "text", where)
    found = [
        checked_label(each, f"label {n}", index, where)
        for n, each in enumerate(checked_list(fields, "labels", where), 1)
    ]
    if len(set(found)) != len(found):
        raise DataInvalid(f"{where}: a label stands there twice")
    return text, tuple(int(number in found) for number in index.values())


def _from_csv(fields: Row) -> Row:
    names = str(fields["labels"]).split(";")
    return {**fields, "labels": [name.strip() for name in names if name.strip()]}


def _fits(text: Text, label: Label, labels: int) -> bool:
    return (
        isinstance(text, str)
        and isinstance(label, tuple)
        and len(label) == labels
        and set(label) <= {0, 1}
    )


def _target(_words: Sequence[int] | None, label: Label) -> Target:
    return [float(each) for each in label] if isinstance(label, tuple) else float(label)


def _probabilities(outputs: Outputs) -> Iterator[Array]:
    """That each label holds, [1, labels]."""
    # Not 1 / (1 + exp(-x)), which overflows.
    yield from (0.5 + 0.5 * np.tanh(outputs.logits / 2))[:, None]


def _mean(probabilities: Sequence[Array]) -> Array:
    return np.asarray(np.mean(probabilities, axis=0))


def _score(
    predictions: Array, labels: Sequence[Label], _names: Sequence[str]
) -> Mapping[str, float]:
    """A label is predicted if its probability is above one half.

    Micro-F1 is of all pairs of texts and labels together; macro-F1 the unweighted mean over the
    labels that occur.
    """
    check_rows(predictions, len(labels))
    gold, predicted = np.asarray(labels, dtype=bool), predictions > 0.5
    occur = np.flatnonzero(gold.any(axis=0))
    macro = [f1_of(predicted[:, label], gold[:, label]) for label in occur]
    return {
        "micro_f1": f1_of(predicted, gold),
        "macro_f1": float(np.mean(macro)) if macro else 0.0,
    }


MULTI_LABEL = TaskRules(
    form=Form(("text", "labels"), '{"text": "...", "labels": ["...", "..."]}', _read, _from_csv),
    head=Head(
        auto="AutoModelForSequenceClassification",
        classes="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        config={"problem_type": "multi_label_classification"},
    ),
    fits=_fits,
    target=_target,
    rows=_probabilities,
    combine=_mean,
    score=_score,
)
