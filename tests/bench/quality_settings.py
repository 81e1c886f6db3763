"""How `quality.py` runs the suites of a task, and what validation data chooses from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from blindmerge.merge import AnyMethod, Average, Fisher, Progressive, RegMean, RegMeanPlusPlus
from blindmerge.tasks import Task
from blindmerge_client.options import TrainingOptions

__all__ = ["SETTINGS", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How the suites of a task are run.

    training: `rows` of it are an organisation's training texts.
    statistics: of them, so many enter the statistics.   test: at most so many texts of each
    set of test data, the first ones.   choose_by: which score chooses.
    variants: what validation data may choose from, by row of the table.
    """

    training: TrainingOptions
    statistics: int
    test: int
    choose_by: Literal["accuracy", "f1"]
    variants: Mapping[str, Sequence[AnyMethod]]


# Their options come from trials on validation data, which the README of this folder lists.
FORWARD: Mapping[str, Sequence[AnyMethod]] = {
    "RegMean++": [RegMeanPlusPlus(rows_factor=0.0)],
    "progressive": [Progressive(rows_factor=0.0)],
    "progressive, Fisher's share": [
        Progressive(rows_factor=0.0, fisher_share=share, fisher_examples=128)
        for share in (0.25, 0.5)
    ],
}
ONE_SHOT: Mapping[str, Sequence[AnyMethod]] = {
    "average": [Average()],
    "Fisher": [Fisher(examples=128), Fisher(examples=128, floor=1e-9)],
    "RegMean": [
        *(RegMean(rows_factor=0.0, ridge=ridge) for ridge in (0.1, 0.01, 1.0)),
        RegMean(rows_factor=0.0, weighting="tokens"),
        RegMean(rows_factor=0.0, ridge=1e-6, off_diagonal=0.9),
        RegMean(rows_factor=0.0, shrinkage="two-fold"),
    ],
    "RegMean, Fisher's share": [
        RegMean(rows_factor=0.0, fisher_share=share, fisher_examples=128) for share in (0.25, 0.5)
    ],
}

SETTINGS: Mapping[Task, Settings] = {
    "single-label": Settings(
        training=TrainingOptions(
            epochs=3, learning_rate=2e-4, batch_size=32, max_length=64, rows=2000
        ),
        statistics=2000,
        test=2000,
        choose_by="accuracy",
        variants={**ONE_SHOT, **FORWARD},
    ),
    "token-classification": Settings(
        training=TrainingOptions(
            epochs=3, learning_rate=4e-4, batch_size=32, max_length=128, rows=1000
        ),
        statistics=1000,
        test=300,
        choose_by="f1",
        variants={**ONE_SHOT, **FORWARD},
    ),
}
