"""After a job: the merged model against the owner's own, and which one the owner uses."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blindmerge.checkpoint import Checkpoint
from blindmerge.files import explaining
from blindmerge.plan import Plan
from blindmerge_client.adapters import full_weights
from blindmerge_client.config import Home
from blindmerge_client.data import read_examples
from blindmerge_client.jobs import Jobs
from blindmerge_client.predict import predict
from blindmerge_client.progress import Watch, unwatched
from blindmerge_client.scores import Scores, score

__all__ = ["Comparison", "compare", "settle"]

_CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of two models on the owner's validation data.   folder: of the merged one."""

    own: Scores
    merged: Scores
    examples: int
    folder: Path


def compare(home: Home, plan: Plan, watch: Watch = unwatched) -> Comparison:
    """Both models on the validation data, which nobody else sees.

    watch: shows how far each of the two is.   Raises what reading data and models raises.
    """
    client, merged = home.client(), _merged(home, plan)
    own = full_weights(client.model, client.base, merged.parent)
    labels = Checkpoint(own).labels
    examples = read_examples(client.validation, labels, plan.task)
    own_scores, merged_scores = (
        score(plan.task, predictions, examples, labels)
        for predictions in (
            predict(folder, examples.texts, plan.max_length, watch=watch)
            for folder in (own, merged)
        )
    )
    return Comparison(own_scores, merged_scores, len(examples), merged)


def settle(home: Home, job: str | None, state: Literal["accepted", "kept"]) -> Path:
    """Notes what the owner decided; the link `current` in its folder points to that model.

    Raises ConfigInvalid unless there is one such job.
    """
    jobs = Jobs(home.jobs)
    found = jobs.find(job, "done", "kept" if state == "accepted" else "accepted")
    folder = _merged(home, found.plan) if state == "accepted" else home.client().model
    link = home.folder / _CURRENT
    temporary = link.with_name(f".{_CURRENT}.new")
    with explaining(link):
        temporary.unlink(missing_ok=True)
        os.symlink(folder, temporary)
        temporary.replace(link)
    jobs.move(found.plan, state)
    return folder


def _merged(home: Home, plan: Plan) -> Path:
    return home.jobs / plan.sha256 / "merged"
