"""Fine-tuning with noise: DP-SGD (Abadi et al. 2016) through Opacus.

In every step each unit, an example or a person, takes part with a fixed chance; its gradient is
clipped, and the sum gets Gaussian noise (privacy/PROOF.md §6.5). Chance, steps and divisor are
public, so nothing tells how many units there are. Embedding tables stay those of the base: one
example's gradient of them would be as large as the table, and hold which words it has. With
`lora`, factors and head are trained; noise on few numbers costs less than noise on all.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import ConfigInvalid, DataInvalid, ResourceMissing
from blindmerge.files import replacing
from blindmerge.fine_tuned import check_fine_tuned
from blindmerge.privacy.accountant import Cost, Training
from blindmerge.secagg.secret import OsRandomness, Randomness
from blindmerge.tasks import Task
from blindmerge_client.adapters import with_lora, without_lora
from blindmerge_client.batches import Tokens, pad, spread, tokenize
from blindmerge_client.collect.private import Units
from blindmerge_client.data import Examples
from blindmerge_client.models import check_max_length, load_model, load_tokenizer, save_model
from blindmerge_client.options import TrainingOptions
from blindmerge_client.tasks import TASKS, Target

__all__ = ["TrainingNoise", "finetune_with_noise"]

_TOGETHER = 64  # examples at once, each with a gradient of its own
_NUMBERS = 2**27  # of these gradients in memory, half a GiB

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainingNoise:
    """Public terms of a training.

    training: as it is accounted.   clip: largest norm of a unit's gradient.
    divisor: of the noised sum, such as the units that a step has on average.
    """

    training: Training
    clip: float
    divisor: float

    @property
    def cost(self) -> Cost:
        """What it costs."""
        return Cost(trainings=(self.training,))


def finetune_with_noise(
    base: Path,
    examples: Examples,
    units: Units,
    options: TrainingOptions,
    noise: TrainingNoise,
    out: Path,
    charge: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda _done, _steps: None,
) -> None:
    """Writes the base, fine-tuned with noise, into the new folder `out`, whole or absent.

    units: numbers of the examples of each unit (`units_of`).
    options: `epochs`, `batch_size` and `rows` do not count; the noise says how long it goes on.
    charge: is given the model's hash, and must return before the model gets its place.
    Raises as `finetune` does, and ResourceMissing without Opacus.
    """
    checkpoint = Checkpoint(base)
    if checkpoint.task not in _LOSSES:
        raise ConfigInvalid(
            f"there is no training with noise for the task '{checkpoint.task}'",
            hint=f"it is there for {', '.join(_LOSSES)}",
        )
    check_max_length(base, options.max_length)
    if not examples.fit(checkpoint.task, len(checkpoint.labels)):
        raise DataInvalid(f"the examples do not fit the labels of '{base}'")
    tokenizer = load_tokenizer(base)
    model: Any = load_model(base)
    rows = tokenize(tokenizer, examples.texts, options.max_length)
    data = _Data(checkpoint.task, tokenizer, rows, examples, units)
    trained: Any = model
    if options.lora is not None:
        trained = with_lora(model, checkpoint.manifest, options.lora)
    _train(trained, data, options, noise, progress)
    model = model if options.lora is None else without_lora(trained)
    with replacing(out) as temporary:
        save_model(model.eval(), tokenizer, temporary)
        check_fine_tuned(Checkpoint(temporary), checkpoint)
        charge(Checkpoint(temporary).sha256)


class _Data:
    """Examples as tensors, some units at a time."""

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Tokens],
        examples: Examples,
        units: Units,
    ) -> None:
        rules = TASKS[task]
        self._tokenizer, self._rows, self.units = tokenizer, rows, units
        self._padding = rules.padding
        self._targets: list[Target] = [
            rules.target(row.words, label) for row, label in zip(rows, examples.labels, strict=True)
        ]
        lengths = [len(row) for row in rows]
        self.longest = [max((lengths[number] for number in unit), default=0) for unit in units]
        self.loss = _LOSSES[task]

    def inputs(
        self, units: Sequence[int]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """What goes into the model; the targets; for each row the place of its unit."""
        numbers = [number for unit in units for number in self.units[unit]]
        places = [place for place, unit in enumerate(units) for _ in self.units[unit]]
        inputs = pad(self._tokenizer, [self._rows[number] for number in numbers])
        targets: list[Any] = [self._targets[number] for number in numbers]
        found = (
            torch.tensor(targets)
            if self._padding is None
            else spread(targets, inputs, self._padding)
        )
        return inputs, found, torch.tensor(places)


def _train(
    model: nn.Module,
    data: _Data,
    options: TrainingOptions,
    noise: TrainingNoise,
    progress: Callable[[int, int], None],
) -> None:
    opacus, training = _opacus(), noise.training
    _freeze_embeddings(model)
    private = opacus.GradSampleModule(model, loss_reduction="sum")
    parameters = [p for p in model.parameters() if p.requires_grad]
    rng = OsRandomness()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(rng.bytes(8), "little", signed=True))
    plain = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    optimizer = opacus.optimizers.DPOptimizer(
        plain,
        noise_multiplier=training.multiplier,
        max_grad_norm=noise.clip,
        expected_batch_size=noise.divisor,
        loss_reduction="mean",
        generator=generator,
        secure_mode=True,
    )
    warmup = round(options.warmup * training.steps)
    schedule = LambdaLR(
        plain,
        lambda step: min((step + 1) / (warmup + 1), (training.steps - step) / training.steps),
    )
    private.train()
    with warnings.catch_warnings():
        # Of layers whose inputs need no gradient, since embeddings are frozen.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        for step in range(training.steps):
            chosen = _poisson(len(data.units), training.rate, rng)
            _step(private, data, chosen, optimizer, parameters)
            schedule.step()
            progress(step + 1, training.steps)
    private.remove_hooks()


def _step(
    private: Any,
    data: _Data,
    chosen: Sequence[int],
    optimizer: Any,
    parameters: Sequence[nn.Parameter],
) -> None:
    """One step over the chosen units, a few at a time; noise is added once."""
    most = _NUMBERS // sum(parameter.numel() for parameter in parameters)
    # Those of one length stand together, for less padding; what is summed has no order.
    ordered = sorted(chosen, key=data.longest.__getitem__)
    parts = list(_together(ordered, data.units, max(1, min(_TOGETHER, most)))) or [()]
    for number, part in enumerate(parts):
        optimizer.zero_grad()
        if part:
            inputs, targets, places = data.inputs(part)
            losses = data.loss(private(**inputs).logits, targets)
            counts = torch.bincount(places, minlength=len(part))
            # The loss of a unit is the mean over its examples.
            torch.autograd.backward((losses / counts[places]).sum())
            _by_unit(parameters, places, len(part))
        else:
            for parameter in parameters:
                parameter.grad_sample = torch.zeros(0, *parameter.shape)  # type: ignore[attr-defined]
        optimizer.signal_skip_step(do_skip=number + 1 < len(parts))
        optimizer.step()
    optimizer.zero_grad()


def _together(chosen: Sequence[int], units: Units, most: int) -> Iterator[tuple[int, ...]]:
    """The chosen units, so many at a time that they have at most `most` examples, or one has."""
    part: list[int] = []
    for unit in chosen:
        if part and sum(len(units[each]) for each in (*part, unit)) > most:
            yield tuple(part)
            part = []
        part.append(unit)
    if part:
        yield tuple(part)


def _by_unit(parameters: Sequence[Any], places: torch.Tensor, units: int) -> None:
    """Gradients of examples, added up to gradients of their units."""
    if len(places) == units:
        return
    for parameter in parameters:
        rows = parameter.grad_sample
        parameter.grad_sample = torch.zeros(units, *rows.shape[1:]).index_add_(0, places, rows)


def _poisson(units: int, rate: float, rng: Randomness) -> list[int]:
    """Each unit with this chance, rounded down to 2^-64, by the operating system's bits."""
    words = np.frombuffer(rng.bytes(8 * units), dtype="<u8")
    if rate >= 1:
        return list(range(units))
    return [int(unit) for unit in np.flatnonzero(words < np.uint64(int(rate * 2.0**64)))]


def _freeze_embeddings(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # there is noise enough


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, targets, reduction="none")


def _of_words(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.sum(dim=1) / (targets >= 0).sum(dim=1).clamp(min=1)


def _of_labels(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none"
    )
    return losses.mean(dim=1)


def _squares(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (logits.flatten() - targets.to(logits.dtype).flatten()).square()


_LOSSES: Mapping[Task, Loss] = {
    "single-label": _cross_entropy,
    "multi-label": _of_labels,
    "regression": _squares,
    "token-classification": _of_words,
}
"""Of each example by itself: a mean over a batch would mix them."""


def _opacus() -> Any:
    try:
        return import_module("opacus")
    except ImportError as error:
        raise ResourceMissing(
            "training with noise needs the package opacus", hint="pip install 'blindmerge[dp]'"
        ) from error
