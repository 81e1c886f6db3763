"""An owner: its name, its data, its model, and the job it is in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from blindmerge.checkpoint import Checkpoint, Tensors
from blindmerge.errors import PeerInvalid, PolicyRefused
from blindmerge.plan import Plan
from blindmerge_client.data import Examples
from blindmerge_client.noise import Account
from blindmerge_client.predict import predict
from blindmerge_client.progress import Watch, unwatched
from blindmerge_client.scores import score
from blindmerge_client.seat import Membership, Seat
from blindmerge_client.session import Session

__all__ = ["Owner"]


class Owner:
    """Answers for one organisation.

    base: the checkpoint that everybody started from.   own: the owner's fine-tuned one.
    train: statistics are collected from these examples.   test: scores of merged models are
    taken on these and published; None publishes nothing.
    folder: private; each job gets a folder in it, named by the plan's hash.
    masks: its membership in a roster, without which it sends nothing; or "off" to let
    plans without masks show the server this owner's statistics.
    account: where noise is charged, without which it takes part in no plan with noise.
    watch: shows how far work on all texts is.
    """

    def __init__(
        self,
        name: str,
        base: Path,
        own: Path,
        train: Examples,
        folder: Path,
        masks: Membership | Literal["off"],
        test: Examples | None = None,
        account: Account | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self.name = name
        self._base = base
        self._own = own
        self._train = train
        self._test = test
        self._folder = folder
        self._masks = masks
        self._account = account
        self._watch = watch
        self._session: Session | None = None

    def session(self, plan: Plan) -> Session:
        """The session of this job; the last one stays open, with its model in memory."""
        if self._session is None or self._session.plan != plan:
            folder = self._folder / plan.sha256
            self._session = Session(
                plan,
                self._base,
                self._own,
                self._train.texts,
                folder,
                self._account,
                self._watch,
            )
        return self._session

    def answer(
        self, plan: Plan, block: int | None, messages: Sequence[bytes]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """What this owner sends: under masks its messages as bytes, by number; else the
        statistic of `block`, by name. Nothing if nothing was asked for.

        Raises PolicyRefused if plan and owner do not agree on masks (further errors: see
        `Seat` and `Session`).
        """
        if isinstance(self._masks, Membership):
            replies = Seat(self._masks, self.session(plan)).answer(messages, block)
            return {str(n): np.frombuffer(data, np.uint8) for n, data in enumerate(replies)}
        if plan.masks != "off":
            raise PolicyRefused(
                f"'{self.name}' has no identity and roster, which a sum under masks needs",
                hint="give the owner a membership",
            )
        if messages:
            raise PeerInvalid("a plan without masks has no messages")
        return {} if block is None else self.session(plan).contribute(block).arrays

    def receive(self, plan: Plan, merged: Tensors) -> None:
        """Keeps merged tensors of a job."""
        self.session(plan).receive(merged)

    def evaluate(self, plan: Plan) -> Mapping[str, float]:
        """Scores of the finished merged model on the owner's test data."""
        merged = self.session(plan).finish()
        if self._test is None:
            return {}
        logits = predict(merged, self._test.texts, plan.max_length, watch=self._watch)
        scores = score(plan.task, logits, self._test, Checkpoint(merged).labels)
        return {**scores.metrics, "examples": scores.examples}
