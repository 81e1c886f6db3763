"""Small jobs: a base, owners whose models are the base plus noise, and a plan.

job = make_job(tmp_path, "roberta", owners=3)
sessions = [job.session(k) for k in range(3)]
masked = under_masks(make_job(tmp_path, owners=4))
owners = [masked.owner(k) for k in range(4)]
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file

from blindmerge.checkpoint import Checkpoint
from blindmerge.encoding import Bits
from blindmerge.identity import Identity, Roster
from blindmerge.plan import Masks, Plan
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.owner import Owner
from blindmerge_client.seat import Membership
from blindmerge_client.session import Session
from blindmerge_client.tasks import Text
from support.pico import Architecture, examples_for, labels_for, pico_encoder
from support.randomness import CounterRandomness

__all__ = [
    "LABELS",
    "NAMES",
    "Job",
    "assert_average",
    "edit_config",
    "edit_weights",
    "make_job",
    "make_plan_for",
    "noisy",
    "under_masks",
    "weights_of",
    "with_plan",
]

LABELS = labels_for("single-label")
NAMES = ("anna", "bert", "cleo", "dora", "emil")
"""Of owners, in the order of their numbers, and of their seats."""


@dataclass(frozen=True)
class Job:
    """base, owners: checkpoint folders.   texts: by owner.   folder: where sessions live.

    identities: of the owners, if the plan has masks.
    """

    base: Path
    owners: tuple[Path, ...]
    texts: tuple[tuple[Text, ...], ...]
    plan: Plan
    folder: Path
    identities: tuple[Identity, ...] = ()

    @property
    def roster(self) -> Roster:
        """Of the owners."""
        return Roster.of([each.member for each in self.identities])

    def owner(self, number: int, **demands: Any) -> Owner:
        """A new owner object, on its folder.   demands: of its membership, if it has one."""
        own: dict[str, Any] = (
            {"identity": self.identities[number], "roster": self.roster} if self.identities else {}
        )
        return Owner(
            NAMES[number],
            self.base,
            self.owners[number],
            examples_for(self.plan.task, len(self.texts[number]), number),
            self.folder / NAMES[number],
            Membership(**(own | demands)) if own else "off",
            examples_for(self.plan.task, 5, 50 + number),
        )

    def session(self, owner: int) -> Session:
        """A new session object of this owner, on its folder."""
        folder = self.folder / f"session-{owner}"
        return Session(self.plan, self.base, self.owners[owner], self.texts[owner], folder)


def make_job(
    folder: Path,
    architecture: Architecture = "bert",
    owners: int = 2,
    texts: int = 12,
    method: str = "regmean",
    task: Task = "single-label",
    **options: Any,
) -> Job:
    """A job of `owners` different models, with `texts` different texts each."""
    base = pico_encoder(folder / "base", architecture, labels=labels_for(task), task=task)
    return Job(
        base=base,
        owners=tuple(noisy(base, folder / f"own-{k}", seed=k) for k in range(owners)),
        texts=tuple(examples_for(task, texts, k).texts for k in range(owners)),
        plan=make_plan_for(base, method, **options),
        folder=folder,
    )


def make_plan_for(
    base: Path, method: str = "regmean", heads: Literal["shared", "kept"] = "shared", **options: Any
) -> Plan:
    """A plan for this base.   heads: whether owners keep theirs.   options: of the method."""
    checkpoint, kept = Checkpoint(base), heads == "kept"
    manifest = checkpoint.manifest
    return Plan.model_validate(
        {
            "job": "job-1",
            "base": checkpoint.sha256,
            "manifest": manifest.with_head_kept if kept else manifest,
            "task": checkpoint.task,
            "labels": () if kept else checkpoint.labels,
            "method": {"name": method, **options},
            "examples": 100,
            "max_length": 32,
            "masks": "off",
        }
    )


def under_masks(job: Job, bits: Bits = 64, colluders: int | None = None) -> Job:
    """The same job, summed under masks."""
    identities = tuple(
        Identity.generate(name, CounterRandomness(name)) for name in NAMES[: len(job.owners)]
    )
    masked = replace(job, identities=identities)
    return with_plan(masked, masks=Masks.of(masked.roster, colluders, bits))


def with_plan(job: Job, /, **changes: Any) -> Job:
    """The same job with another plan."""
    fields = {name: getattr(job.plan, name) for name in Plan.model_fields}
    return replace(job, plan=Plan.model_validate(fields | changes))


def weights_of(folder: Path) -> dict[str, Array]:
    """Every tensor of a checkpoint, float64."""
    checkpoint = Checkpoint(folder)
    return checkpoint.read(checkpoint.manifest.shapes)


def assert_average(job: Job, present: Sequence[int]) -> None:
    """What the job wrote to `out` is the mean of these owners' models.

    The ring is off by at most 1.5 * 2^-48 in a sum (`error_bound` with the exponents of
    `layouts_of`, 48 or more, and up to four owners); float32 then rounds by 2^-24.
    """
    own = [weights_of(job.owners[number]) for number in present]
    for name, array in weights_of(job.folder / "out").items():
        mean = np.mean([each[name] for each in own], axis=0)
        assert (np.abs(array - mean) <= 2.0**-24 * np.abs(mean) + 2.0**-46).all(), name


def noisy(base: Path, folder: Path, seed: int) -> Path:
    """A copy of a checkpoint with noise on every number, as if fine-tuned."""
    shutil.copytree(base, folder)
    rng = np.random.default_rng(seed)

    def add(tensors: dict[str, Any]) -> None:
        for name in sorted(tensors):
            noise = 0.01 * rng.standard_normal(tensors[name].shape)
            tensors[name] = (tensors[name] + noise).astype(np.float32)

    return edit_weights(folder, add)


def edit_weights(folder: Path, edit: Any) -> Path:
    """Applies `edit` to the dict of tensors of a checkpoint with one file."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit_config(
    folder: Path, file: str = "config.json", drop: Sequence[str] = (), **to: Any
) -> Path:
    """Changes or drops keys of a JSON file in a checkpoint."""
    config = json.loads((folder / file).read_text())
    config = {key: config[key] for key in config if key not in drop} | to
    (folder / file).write_text(json.dumps(config))
    return folder
