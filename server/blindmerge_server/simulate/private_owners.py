"""Simulated owners in a job with noise: their training, and a ledger that lasts for the run."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from blindmerge import canonical
from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import ConfigInvalid, DataInvalid
from blindmerge.merge import Evidence
from blindmerge.privacy.accountant import training_for
from blindmerge.privacy.terms import Unit
from blindmerge.tasks import Task
from blindmerge_client.collect.private import Units
from blindmerge_client.data import Examples
from blindmerge_client.dp_sgd import TrainingNoise, finetune_with_noise
from blindmerge_client.ledger import Budget, Ledger
from blindmerge_client.noise import Account
from blindmerge_client.options import TrainingOptions
from blindmerge_client.persons import read_persons
from blindmerge_server.noise_settings import NoiseSettings
from blindmerge_server.simulate.federation import Federation

__all__ = ["OwnerNoise", "account_of", "check_owners", "noise_of_owners", "trained_with_noise"]

_ENOUGH = 1e6  # epsilon: a simulated owner refuses nothing


@dataclass(frozen=True)
class OwnerNoise:
    """What an owner must know. training: None if it trains without noise."""

    unit: Unit
    unit_examples: int
    delta: float
    training: TrainingNoise | None

    def persons(self, file: Path, task: Task) -> tuple[str, ...] | None:
        """Of the examples, if they are the unit.   Raises DataInvalid without a column for it."""
        if self.unit == "example":
            return None
        persons = read_persons(file, task)
        if persons is None:
            raise DataInvalid(
                f"'{file}' has no column 'person'",
                hint='noise with unit = "person" must know whose an example is',
            )
        return persons


def noise_of_owners(federation: Federation) -> OwnerNoise | None:
    """The same for all owners: it follows from the federation's file."""
    settings = federation.noise
    if settings is None:
        return None
    training = None
    if settings.mode == "end-to-end":
        training = _training(settings, federation)
    return OwnerNoise(settings.unit, settings.unit_examples, settings.delta, training)


def _training(settings: NoiseSettings, federation: Federation) -> TrainingNoise:
    """What is left of epsilon after the statistics, if any method has some."""
    options, units = federation.training, federation.job.examples
    rate = min(1.0, options.batch_size / units)
    steps = max(1, round(options.epochs / rate))
    grams = any(Evidence.GRAM in m.needs for m in federation.job.methods.values())
    if settings.epsilon is None:
        raise AssertionError("end-to-end settings have an epsilon")
    rho = settings.statistics_rho if grams else 0.0
    training = training_for(settings.epsilon, settings.delta, rate, steps, rho=rho)
    return TrainingNoise(training, settings.gradient_clip, rate * units)


def check_owners(federation: Federation, train: dict[str, Examples]) -> None:
    """Raises ConfigInvalid or DataInvalid for owners whose data the noise cannot protect."""
    noise = noise_of_owners(federation)
    if noise is None:
        return
    for owner in federation.owners:
        if len(train[owner.name]) > federation.job.examples:
            raise ConfigInvalid(
                f"job.examples is {federation.job.examples}, owner '{owner.name}' has "
                f"{len(train[owner.name])}, and with noise every example has to count",
                hint="raise job.examples to the largest number of an owner's examples",
            )
        noise.persons(owner.train, federation.job.task)
        if noise.training is not None and owner.checkpoint is not None:
            raise ConfigInvalid(
                f"owner.{owner.name}.checkpoint: was not trained with noise in this run",
                hint='leave it out, or choose mode = "statistics"',
            )
    if noise.training is not None and federation.training.rows is not None:
        raise ConfigInvalid(
            "training.rows: with noise in training every example has to count",
            hint="leave it out, and shorten the file instead",
        )


def trained_with_noise(
    cache: Path,
    base: Path,
    base_sha256: str,
    examples: Examples,
    units: Units,
    options: TrainingOptions,
    noise: TrainingNoise,
    progress: Callable[[int, int], None] | None,
) -> Path:
    """The folder of the model, trained only if it is not in the cache."""
    content = {
        "base": base_sha256,
        "examples": examples.sha256,
        "units": units,
        "options": options.model_dump(exclude={"epochs", "batch_size", "rows"}, exclude_none=True),
        "noise": [noise.training.model_dump(), noise.clip, noise.divisor],
        "versions": [str(torch.__version__), transformers.__version__],
    }
    out = cache / hashlib.sha256(canonical.encode(content)).hexdigest()
    if not out.is_dir():
        try:
            finetune_with_noise(
                base,
                examples,
                units,
                options,
                noise,
                out,
                lambda _model: None,  # `account_of` charges what may come from the cache
                progress or (lambda _done, _steps: None),
            )
        except OSError:
            # Another process put its folder there just before ours was to be renamed.
            if not out.is_dir():
                raise
    return out


def account_of(
    folder: Path, examples: Examples, persons: tuple[str, ...] | None, noise: OwnerNoise, own: Path
) -> Account:
    """The owner's account in this run, with the training of its model charged."""
    now, path = int(time.time()), folder / "ledger"
    ledger = Ledger(path) if path.exists() else Ledger.create(path, examples.account, now=now)
    account = Account(ledger, examples.account, Budget(_ENOUGH, noise.delta), persons)
    if noise.training is not None:
        model = Checkpoint(own).sha256
        if ledger.read(account.dataset).training_of(bytes.fromhex(model)) is None:
            ledger.train(
                account.dataset,
                f"training:{model}",
                cost=noise.training.cost,
                budget=account.budget,
                now=now,
                model=model,
            )
    return account
