"""An owner: its name, its data, its model, and the job it is in."""

from collections.abc import Mapping
from pathlib import Path

from blindmerge.checkpoint import Tensors
from blindmerge.plan import Plan
from blindmerge.statistic import Statistic
from blindmerge_client.data import Examples
from blindmerge_client.predict import predict, score
from blindmerge_client.session import Session

__all__ = ["Owner"]


class Owner:
    """Answers for one organisation.

    base: the checkpoint that everybody started from.   own: the owner's fine-tuned one.
    train: statistics are collected from these examples.   test: scores of merged models are
    taken on these and published; None publishes nothing.
    folder: private; each job gets a folder in it, named by the plan's hash.
    """

    def __init__(
        self,
        name: str,
        base: Path,
        own: Path,
        train: Examples,
        folder: Path,
        test: Examples | None = None,
    ) -> None:
        self.name = name
        self._base = base
        self._own = own
        self._train = train
        self._test = test
        self._folder = folder
        self._session: Session | None = None

    def session(self, plan: Plan) -> Session:
        """The session of this job; the last one stays open, with its model in memory."""
        if self._session is None or self._session.plan != plan:
            folder = self._folder / plan.sha256
            self._session = Session(plan, self._base, self._own, self._train.texts, folder)
        return self._session

    def contribute(self, plan: Plan, phase: int) -> Statistic:
        """The statistic of a phase (errors: see `Session`)."""
        return self.session(plan).contribute(phase)

    def receive(self, plan: Plan, phase: int, merged: Tensors) -> None:
        """Keeps the merged tensors of a phase."""
        self.session(plan).receive(phase, merged)

    def evaluate(self, plan: Plan) -> Mapping[str, float]:
        """Scores of the finished merged model on the owner's test data."""
        merged = self.session(plan).finish()
        if self._test is None:
            return {}
        logits = predict(merged, self._test.texts, plan.max_length)
        scores = score(logits, self._test.labels)
        return {
            "accuracy": scores.accuracy,
            "macro_f1": scores.macro_f1,
            "examples": scores.examples,
        }
