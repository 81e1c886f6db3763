"""What a simulation needs before anything is trained: texts, base model, plans.

Whatever is wrong with files and models is found here, before any work.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import BlindmergeError
from blindmerge.fine_tuned import check_fine_tuned
from blindmerge.identity import Identity, Roster
from blindmerge.plan import Masks, Plan
from blindmerge.secagg.secret import OsRandomness, Secret
from blindmerge.tasks import Task
from blindmerge_client.adapters import full_weights
from blindmerge_client.collect.private import units_of
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.finetune import cached_base, cached_finetune
from blindmerge_client.models import check_max_length
from blindmerge_client.noise import Account
from blindmerge_client.options import TrainingOptions
from blindmerge_client.seat import Membership
from blindmerge_server.simulate.bounds import Layouts, cached_layouts
from blindmerge_server.simulate.embedded import embedded_folder
from blindmerge_server.simulate.federation import Federation, Owner
from blindmerge_server.simulate.noise_terms import warning_of, with_noise
from blindmerge_server.simulate.private_owners import (
    OwnerNoise,
    account_of,
    check_owners,
    noise_of_owners,
    trained_with_noise,
)

__all__ = ["Pupil", "Setting", "Splits", "read_setting"]


@dataclass(frozen=True, slots=True)
class Splits:
    """An owner's texts."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Pupil:
    """An owner that has to be fine-tuned, or was: all that a worker process must know.

    base: what the job's plans name.   start: what is fine-tuned: the base, with a head of the
    owner's own labels if heads are kept.
    checkpoint: fine-tuned already; None takes it from the cache or trains it.
    roster, seed: encoded roster and the identity's secret; None lets the server see everything.
    colluders: of how many owners, in league with the server, it must stay safe.
    """

    name: str
    base: Path
    start: Path
    start_sha256: str
    train: Path
    test: Path
    task: Task
    labels: tuple[str, ...]
    training: TrainingOptions
    checkpoint: Path | None
    cache: Path
    folder: Path
    roster: bytes | None
    colluders: int | None
    seed: bytes | None = field(repr=False)
    noise: OwnerNoise | None = None

    @property
    def masks(self) -> Membership | Literal["off"]:
        """What the owner demands of plans."""
        if self.roster is None or self.seed is None:
            return "off"
        identity = Identity(self.name, Secret(self.seed))
        return Membership(identity, Roster.decode(self.roster), colluders=self.colluders)

    def fine_tuned(self, progress: Callable[[int, int], None] | None = None) -> Path:
        """The folder of the owner's own model (errors: see `finetune`)."""
        if self.checkpoint is not None:
            return self.checkpoint
        if self.noise is not None and self.noise.training is not None:
            examples = self.examples()
            persons = self.noise.persons(self.train, self.task)
            return trained_with_noise(
                self.cache,
                self.start,
                self.start_sha256,
                examples,
                units_of(len(examples), persons, self.noise.unit_examples),
                self.training,
                self.noise.training,
                progress,
            )
        return cached_finetune(
            self.cache, self.start, self.start_sha256, self.examples(), self.training, progress
        )

    def account(self, own: Path) -> Account | None:
        """Where noise is charged; None if the job has none.   own: the owner's model."""
        if self.noise is None:
            return None
        persons = self.noise.persons(self.train, self.task)
        return account_of(self.folder, self.examples(), persons, self.noise, own)

    def examples(self) -> Examples:
        """The training examples."""
        return read_examples(self.train, self.labels, self.task)


@dataclass(frozen=True)
class Setting:
    """A federation with everything in its place.

    base: the prepared checkpoint that all owners start from.   plans: by id of the method.
    roster: of the owners; None without masks.   layouts: public exponents, by id of the method.
    cache: what outlives the run; work: what does not.
    """

    federation: Federation
    base: Checkpoint
    splits: dict[str, Splits]
    pupils: tuple[Pupil, ...]
    plans: dict[str, Plan]
    roster: Roster | None
    layouts: dict[str, Layouts]
    cache: Path
    work: Path

    @property
    def owners(self) -> Path:
        """The folder with one folder per owner."""
        return _owners(self.work)


def _owners(work: Path) -> Path:
    folder = work / "owners"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def read_setting(
    federation: Federation, cache: Path, work: Path, say: Callable[[str], None]
) -> Setting:
    """Fetches what is embedded, reads all texts, prepares the base, checks every checkpoint.

    Raises the errors of what it does: ConfigInvalid, DataInvalid, CheckpointInvalid,
    ResourceMissing.
    """
    if federation.needs_embedded:
        federation = federation.resolve(embedded_folder(cache, say))
    job = federation.job
    splits = {
        owner.name: Splits(
            *(
                read_examples(path, federation.labels_of(owner), job.task)
                for path in (owner.train, owner.validation, owner.test)
            )
        )
        for owner in federation.owners
    }
    check_owners(federation, {name: each.train for name, each in splits.items()})
    base = _prepared(federation, job.labels, cache)
    check_max_length(base.path, federation.training.max_length)
    identities = _identities(federation)
    roster = Roster.of([each.member for each in identities.values()]) if identities else None
    masks: Masks | Literal["off"] = Masks.of(roster, job.colluders, job.bits) if roster else "off"
    plans = _noised(_plans(federation, base, masks), federation, base, cache, say)
    layouts = {
        name: cached_layouts(plan, base.path, cache / "layouts")
        for name, plan in (plans if roster else {}).items()
    }
    pupils = tuple(
        _pupil(federation, owner, base.path, cache, work, roster, identities.get(owner.name))
        for owner in federation.owners
    )
    return Setting(federation, base, splits, pupils, plans, roster, layouts, cache, work)


def _plans(
    federation: Federation, base: Checkpoint, masks: Masks | Literal["off"]
) -> dict[str, Plan]:
    """By id of the method.   Raises ConfigInvalid if one cannot merge such a model."""
    job, manifest = federation.job, base.manifest
    if federation.heads_kept:
        manifest = manifest.with_head_kept
    for method in job.methods.values():
        method.check(manifest)
    return {
        name: Plan(
            job=job.name,
            base=base.sha256,
            manifest=manifest,
            task=job.task,
            labels=() if manifest.kept else job.labels,
            method=method,
            examples=job.examples,
            max_length=federation.training.max_length,
            masks=masks,
        )
        for name, method in job.methods.items()
    }


def _noised(
    plans: dict[str, Plan],
    federation: Federation,
    base: Checkpoint,
    cache: Path,
    say: Callable[[str], None],
) -> dict[str, Plan]:
    """The plans with noise, if there is to be any; says beforehand what it will drown."""
    settings, owners = federation.noise, len(federation.owners)
    if settings is None:
        return plans
    found = {}
    for name, plan in plans.items():
        found[name] = with_noise(plan, base.path, settings, owners, cache / "norms")
        if warning := warning_of(plan, settings, owners):
            say(f"{name}: {warning}")
    return found


def _identities(federation: Federation) -> dict[str, Identity]:
    """New ones for every run; real owners keep theirs. None without masks."""
    if federation.job.masks == "off":
        return {}
    return {
        owner.name: Identity.generate(owner.name, OsRandomness()) for owner in federation.owners
    }


def _prepared(federation: Federation, labels: tuple[str, ...], cache: Path) -> Checkpoint:
    """The base with a head for the labels, made once per source, task, labels and seed."""
    job, seed = federation.job, federation.training.seed
    return Checkpoint(cached_base(cache / "bases", Checkpoint(job.base), labels, seed, job.task))


def _pupil(
    federation: Federation,
    owner: Owner,
    base: Path,
    cache: Path,
    work: Path,
    roster: Roster | None,
    identity: Identity | None,
) -> Pupil:
    checkpoint, labels = owner.checkpoint, federation.labels_of(owner)
    start = _prepared(federation, labels, cache)
    if checkpoint is not None:
        try:
            checkpoint = full_weights(checkpoint, start.path, cache / "adapters")
            check_fine_tuned(Checkpoint(checkpoint), start)
        except BlindmergeError as error:
            raise type(error)(
                f"owner.{owner.name}.checkpoint: {error.message}", hint=error.hint
            ) from error
    return Pupil(
        name=owner.name,
        base=base,
        start=start.path,
        start_sha256=start.sha256,
        train=owner.train,
        test=owner.test,
        task=federation.job.task,
        labels=labels,
        training=federation.training,
        checkpoint=checkpoint,
        cache=cache / "models",
        folder=_owners(work) / owner.name,
        roster=None if roster is None else roster.encode(),
        colluders=federation.job.colluders,
        seed=None if identity is None else identity.seed.reveal(),
        noise=noise_of_owners(federation),
    )
