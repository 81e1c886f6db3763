"""The systems of a report: own and merged models, and what only a simulation can make.

A simulation has every model and all texts in one place, so it can show the ensemble of all own
models and a multi-task model trained on the pooled data: the systems that Jin et al. (2023)
compare with. An organisation of a real federation can make neither.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers

from blindmerge import canonical
from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import TooFewOwners
from blindmerge.files import replacing
from blindmerge.statistic import Array
from blindmerge_client.data import Examples
from blindmerge_client.finetune import cached_finetune
from blindmerge_client.models import has_bfloat16
from blindmerge_client.predict import predict_all
from blindmerge_client.scores import score
from blindmerge_client.tasks import TASKS
from blindmerge_server.report.schema import DataScore, Kind, SystemScores
from blindmerge_server.report.wording import name_of
from blindmerge_server.simulate.setting import Setting
from blindmerge_server.strategy import JobRecord

__all__ = ["multi_task", "systems"]


def multi_task(
    setting: Setting, owners: Sequence[str], progress: Callable[[int, int], None]
) -> Path:
    """The base, fine-tuned on the training texts of all `owners` together."""
    rows = setting.federation.training.rows
    trained = [setting.splits[owner].train for owner in owners]
    parts = [train if rows is None else train.first(rows) for train in trained]
    options = setting.federation.training.model_copy(update={"rows": None})
    return cached_finetune(
        setting.cache / "models",
        setting.base.path,
        setting.base.sha256,
        Examples.pooled(parts),
        options,
        progress,
    )


def systems(
    setting: Setting,
    own: Mapping[str, Path],
    merged: Mapping[str, Path],
    jobs: Mapping[str, JobRecord],
    pooled: Path | None,
    step: Callable[[int, int], None],
) -> tuple[SystemScores, ...]:
    """Every system, scored on the test data of every owner in `own`.

    Where owners keep their heads, no model is one for another owner's labels: each has its own
    model, and the merged one under its own head.

    own: checkpoint by owner.   merged: checkpoint by method.   jobs: the scores of the merged
    models that owners measured themselves; what an owner did not, is measured here.
    step: called with how many models have been applied, and how many there are.
    """
    tests = {owner: setting.splits[owner].test for owner in own}
    if pooled is None:
        return _with_own_heads(setting, own, jobs, tests)
    scored = partial(_scored, setting)
    logits: dict[str, dict[str, Array]] = {}
    for number, (owner, checkpoint) in enumerate(own.items()):
        step(number, len(own) + 1)
        logits[owner] = _remembered(setting, checkpoint, tests)
    step(len(own), len(own) + 1)
    of_pooled = _remembered(setting, pooled, tests)
    rows = [scored(f"own:{owner}", "own", logits[owner], tests) for owner in own]
    rows.append(scored("own", "own", {owner: logits[owner][owner] for owner in own}, tests))
    for method, checkpoint in merged.items():
        rows.append(_merged(setting, method, checkpoint, jobs[method], tests))
    combine = TASKS[setting.federation.job.task].combine
    together = {data: combine([logits[owner][data] for owner in own]) for data in tests}
    rows.append(scored("ensemble", "simulation-only", together, tests))
    rows.append(scored("multi-task", "simulation-only", of_pooled, tests))
    step(len(own) + 1, len(own) + 1)
    return tuple(rows)


def _with_own_heads(
    setting: Setting,
    own: Mapping[str, Path],
    jobs: Mapping[str, JobRecord],
    tests: Mapping[str, Examples],
) -> tuple[SystemScores, ...]:
    """Only owners can score a model under their heads, so those are shown that did."""
    told = {o: t for o, t in tests.items() if all(o in job.scores for job in jobs.values())}
    if not told:
        raise TooFewOwners("no owner has told how good the merged model is under its head")
    logits = {o: _remembered(setting, own[o], {o: test})[o] for o, test in told.items()}
    rows = [_scored(setting, "own", "own", logits, told)]
    for method, job in jobs.items():
        scores = [_sent(owner, job.scores[owner]) for owner in told]
        rows.append(SystemScores.of(method, "merged", name_of(method), scores))
    return tuple(rows)


def _remembered(
    setting: Setting, checkpoint: Path, tests: Mapping[str, Examples]
) -> dict[str, Array]:
    """Logits by test set, from the cache if this model was applied to these texts before.

    For models that are cached themselves: a second run does not apply them again.
    """
    content = [
        Checkpoint(checkpoint).sha256,
        [[owner, test.sha256] for owner, test in tests.items()],
        setting.federation.training.max_length,
        [str(torch.__version__), transformers.__version__, has_bfloat16()],
    ]
    key = hashlib.sha256(canonical.encode(content)).hexdigest()
    file = setting.cache / "predictions" / f"{key}.npz"
    if not file.exists():
        found = predict_all(checkpoint, tests, setting.federation.training.max_length)
        with replacing(file) as temporary, temporary.open("wb") as stream:
            # By place: an owner's name may be one of savez's own arguments.
            np.savez(stream, *found.values(), allow_pickle=False)
    with np.load(file, allow_pickle=False) as arrays:
        return {owner: arrays[f"arr_{place}"] for place, owner in enumerate(tests)}


def _scored(
    setting: Setting,
    system: str,
    kind: Kind,
    predictions: Mapping[str, Array],
    tests: Mapping[str, Examples],
) -> SystemScores:
    scores = [_score(setting, owner, predictions[owner], test) for owner, test in tests.items()]
    return SystemScores.of(system, kind, name_of(system), scores)


def _score(setting: Setting, owner: str, predictions: Array, test: Examples) -> DataScore:
    (pupil,) = (pupil for pupil in setting.pupils if pupil.name == owner)
    found = score(pupil.task, predictions, test, pupil.labels)
    return DataScore(data=owner, metrics=dict(found.metrics), examples=found.examples)


def _merged(
    setting: Setting,
    method: str,
    checkpoint: Path,
    job: JobRecord,
    tests: Mapping[str, Examples],
) -> SystemScores:
    unscored = {owner: test for owner, test in tests.items() if owner not in job.scores}
    max_length = setting.federation.training.max_length
    here = predict_all(checkpoint, unscored, max_length) if unscored else {}
    scores = []
    for owner, test in tests.items():
        if owner in here:
            scores.append(_score(setting, owner, here[owner], test))
        else:
            scores.append(_sent(owner, job.scores[owner]))
    return SystemScores.of(method, "merged", name_of(method), scores)


def _sent(owner: str, scores: Mapping[str, float]) -> DataScore:
    """What an owner published."""
    metrics = {name: value for name, value in scores.items() if name != "examples"}
    return DataScore(data=owner, metrics=metrics, examples=round(scores["examples"]))
