"""`blindmerge client train`: a model of one's own with noise, charged to the ledger."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from blindmerge.errors import ConfigInvalid
from blindmerge_client.arguments import Folder

if TYPE_CHECKING:
    from blindmerge_client.config import Client, Home
    from blindmerge_client.data import Examples
    from blindmerge_client.dp_sgd import TrainingNoise

__all__ = ["open_ledger", "train"]

LearningRate: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="The highest; if left out, 0.01 for factors, 0.001 for all weights.", min=1e-9, max=1
    ),
]


def train(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    epsilon: Annotated[float, typer.Option(help="What the training may cost.", min=0.01, max=100)],
    examples: Annotated[
        int, typer.Option(help="A public number: at least as many as you have.", min=1)
    ],
    epochs: Annotated[int, typer.Option(help="How often each is seen.", min=1)] = 4,
    batch_size: Annotated[int, typer.Option(help="Per step, on average.", min=1)] = 1024,
    learning_rate: LearningRate = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a text.", min=4)] = 64,
    clip: Annotated[float, typer.Option(help="Largest norm of a gradient.", min=1e-9)] = 1.0,
    lora: Annotated[int, typer.Option(help="Rank of the factors; 0 trains all.", min=0)] = 2,
    person_examples: Annotated[
        int, typer.Option(help="Protect persons, of whom so many examples count.", min=0)
    ] = 0,
) -> None:
    """Fine-tune the base with noise, by DP-SGD. "end-to-end" jobs need it.

    The training is charged to the ledger of these examples before the model is in OUT. Noise is
    least harmful with few steps, large batches and few factors.
    """
    from blindmerge_client.collect.private import units_of
    from blindmerge_client.config import Home
    from blindmerge_client.dp_sgd import finetune_with_noise
    from blindmerge_client.options import LoraOptions, TrainingOptions

    home = Home(folder)
    client = home.client()
    data = _examples(client)
    if out.exists() or len(data) > examples:
        raise ConfigInvalid(
            f"'{out}' exists" if out.exists() else f"there are {len(data)} examples",
            hint="give a new folder, and with --examples a public number that is large enough",
        )
    persons = _persons(client, data) if person_examples else None
    noise, charge = _charged(home, data.account, epsilon, examples, batch_size, epochs, clip)
    options = TrainingOptions(
        learning_rate=learning_rate or (1e-2 if lora else 1e-3),
        max_length=max_length,
        lora=LoraOptions(rank=lora, alpha=2.0 * lora) if lora else None,
    )
    units = units_of(len(data), persons, max(1, person_examples))
    finetune_with_noise(client.base, data, units, options, noise, out, charge, _progress)
    print(f"\n{out}: trained with noise, epsilon {epsilon:g}; name it as `model` in client.toml")


def _charged(
    home: "Home",
    dataset: str,
    epsilon: float,
    examples: int,
    batch_size: int,
    epochs: int,
    clip: float,
) -> "tuple[TrainingNoise, Callable[[str], None]]":
    """The noise of a training, and what charges it; refused before any work if it is too dear."""
    from blindmerge.privacy.accountant import check_delta, training_for
    from blindmerge_client.dp_sgd import TrainingNoise
    from blindmerge_client.ledger import Budget

    policy, ledger = home.policy(), home.ledger(dataset)
    check_delta(policy.delta, examples)
    rate = min(1.0, batch_size / examples)
    training = training_for(epsilon, policy.delta, rate, max(1, round(epochs / rate)))
    noise, budget = (
        TrainingNoise(training, clip, rate * examples),
        Budget(policy.max_epsilon, policy.delta),
    )
    budget.check(ledger.read(dataset).spent, noise.cost)

    def charge(model: str) -> None:
        now, subject = int(time.time()), f"training:{model}"
        ledger.train(dataset, subject, cost=noise.cost, budget=budget, now=now, model=model)

    return noise, charge


def _progress(done: int, total: int) -> None:
    print(f"\rstep {done} of {total}", end="", flush=True)


def open_ledger(folder: Folder) -> None:
    """Open the ledger of the training data. It says that nothing is spent yet."""
    from blindmerge_client.config import Home
    from blindmerge_client.ledger import Ledger

    home = Home(folder)
    data = _examples(home.client())
    others = sorted(path.name for path in home.ledgers.glob("*") if path.is_dir())
    path = home.ledgers / data.account
    home.ledgers.mkdir(mode=0o700, exist_ok=True)
    Ledger.create(path, data.account, now=int(time.time()))
    print(f"ledger of {len(data):,} examples ({data.account[:12]}): nothing is spent")
    print(f"Keep a copy of '{path}', and note its head: blindmerge client ledger show {folder}")
    if others:
        print(
            f"\nThere are {len(others)} other ledger(s) here. What was spent of an example there "
            "is not counted here:\nif the data overlap, go on with the old data and their ledger."
        )


def _examples(client: "Client") -> "Examples":
    from blindmerge.checkpoint import Checkpoint
    from blindmerge_client.adapters import labels_of
    from blindmerge_client.data import read_examples

    base = Checkpoint(client.base)
    # Before the first training there is no model yet.
    labels = labels_of(client.model, client.base) if client.model.is_dir() else base.labels
    return read_examples(client.train, labels, base.task)


def _persons(client: "Client", data: "Examples") -> tuple[str, ...]:
    from blindmerge.checkpoint import Checkpoint
    from blindmerge_client.persons import read_persons

    persons = read_persons(client.train, Checkpoint(client.base).task)
    if persons is None or len(persons) != len(data):
        raise ConfigInvalid(
            f"'{client.train}' has no column 'person'",
            hint="leave out --person-examples, or add it",
        )
    return persons
