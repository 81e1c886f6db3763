"""Training with noise: gradients are clipped per unit, and the model is charged for."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import BudgetExhausted
from blindmerge.privacy.accountant import Training
from blindmerge_client import dp_sgd
from blindmerge_client.collect.private import Units, units_of
from blindmerge_client.dp_sgd import TrainingNoise, finetune_with_noise
from blindmerge_client.models import load_model
from blindmerge_client.options import LoraOptions, TrainingOptions
from support.federations import LABELS
from support.jobs import weights_of
from support.pico import TAGS, Architecture, pico_encoder, pico_examples, pico_sentences

EXAMPLES = pico_examples(12, seed=3)
ALONE = units_of(12, None, 1)
EVERYBODY = Training(multiplier=1e-6, rate=1.0, steps=1)


def train(
    folder: Path,
    noise: TrainingNoise,
    units: Units = ALONE,
    examples: Any = EXAMPLES,
    charge: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Path:
    """The folder of a pico model that was trained from `folder / "base"`."""
    settings = TrainingOptions(max_length=16, warmup=0.0, weight_decay=0.0, **options)
    out = folder / f"out-{len(list(folder.iterdir()))}"
    finetune_with_noise(folder / "base", examples, units, settings, noise, out, charge)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pico_encoder(tmp_path / "base", labels=LABELS)
    return tmp_path


class _Spy:
    """Sees what a step's optimizer gets, in place of AdamW's rule."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sums: list[list[torch.Tensor]] = []
        step = torch.optim.AdamW.step

        def see(optimizer: Any, *arguments: Any) -> Any:
            parameters = optimizer.param_groups[0]["params"]
            self.sums.append([p.grad.clone() for p in parameters])
            return step(optimizer, *arguments)

        patch.setattr(torch.optim.AdamW, "step", see)


def _expected(folder: Path, units: Units, clip: float) -> list[torch.Tensor]:
    """The sum of clipped gradients by autograd, unit after unit."""
    from blindmerge_client.batches import pad, tokenize
    from blindmerge_client.models import load_tokenizer

    model, tokenizer = load_model(folder / "base"), load_tokenizer(folder / "base")
    rows = tokenize(tokenizer, EXAMPLES.texts, 16)
    parameters = [p for name, p in model.named_parameters() if "_embeddings." not in name]
    total = [torch.zeros_like(p) for p in parameters]
    for unit in units:
        losses = []
        for number in unit:
            logits = model(**pad(tokenizer, [rows[number]])).logits
            label = torch.tensor([EXAMPLES.labels[number]])
            losses.append(torch.nn.functional.cross_entropy(logits, label))
        gradients = torch.autograd.grad(torch.stack(losses).mean(), parameters)
        norm = float(torch.sqrt(sum((g * g).sum() for g in gradients)))  # type: ignore[arg-type]
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += min(1.0, clip / norm) * gradient
    return total


@pytest.mark.parametrize(
    "units", [ALONE, ((0, 1, 2), (3,), (4, 5), (6, 7, 8, 9, 10, 11))], ids=["examples", "persons"]
)
def test_a_step_is_the_clipped_sum_over_units_by_a_public_number(
    units: Units, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp_sgd, "_TOGETHER", 6)  # the units come in several parts
    spy = _Spy(monkeypatch)
    train(folder, TrainingNoise(EVERYBODY, clip=0.5, divisor=8.0), units)
    (sums,) = spy.sums
    expected = _expected(folder, units, 0.5)
    assert len(sums) == len(expected)
    for found, wanted in zip(sums, expected, strict=True):
        # Noise of 5e-7; float32 sums of a dozen gradients below 0.5 are off by about as much.
        torch.testing.assert_close(found * 8.0, wanted, rtol=1e-3, atol=2e-5)


def test_noise_has_the_size_of_the_terms_and_an_empty_step_is_noise_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = _Spy(monkeypatch)
    nobody = Training(multiplier=3.0, rate=1e-18, steps=1)
    train(folder, TrainingNoise(nobody, clip=0.5, divisor=1.0))
    noise = torch.cat([each.flatten() for each in spy.sums[0]]).double()
    # Of n numbers the mean square is off by more than 5 sqrt(2 / n) once in a million times.
    assert abs(float(noise.square().mean()) / 1.5**2 - 1) < 5 * (2 / len(noise)) ** 0.5
    assert abs(float(noise.mean())) < 5 * 1.5 / len(noise) ** 0.5


def test_everybody_has_the_same_chance() -> None:
    from blindmerge.secagg.secret import OsRandomness

    assert dp_sgd._poisson(5, 1.0, OsRandomness()) == [0, 1, 2, 3, 4]
    drawn = dp_sgd._poisson(40_000, 0.25, OsRandomness())
    assert abs(len(drawn) - 10_000) < 5 * (40_000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_it_trains_and_leaves_embeddings_alone(
    architecture: Architecture, lora: LoraOptions | None, tmp_path: Path
) -> None:
    pico_encoder(tmp_path / "base", architecture, labels=LABELS)
    few = TrainingNoise(Training(multiplier=0.01, rate=0.5, steps=3), clip=1.0, divisor=6.0)
    out = train(tmp_path, few, lora=lora, learning_rate=1e-2)
    base, own = weights_of(tmp_path / "base"), weights_of(out)
    changed = {name for name in base if (base[name] != own[name]).any()}
    assert any("classifier" in name for name in changed)
    assert any(".layer.0." in name for name in changed)
    assert not any("embeddings.weight" in name and "_embeddings" in name for name in changed)


def test_words_are_learnt_as_well(tmp_path: Path) -> None:
    pico_encoder(tmp_path / "base", labels=TAGS, task="token-classification")
    sentences = pico_sentences(6, seed=1)
    few = TrainingNoise(Training(multiplier=0.01, rate=1.0, steps=2), clip=1.0, divisor=6.0)
    train(tmp_path, few, units_of(6, None, 1), sentences, learning_rate=1e-2)


def test_the_model_is_charged_before_it_is_there(folder: Path) -> None:
    charged: list[str] = []
    noise = TrainingNoise(EVERYBODY, 1.0, 1.0)

    def charge(sha256: str) -> None:
        assert not [path for path in folder.iterdir() if path.name.startswith("out-")]
        charged.append(sha256)

    out = train(folder, noise, charge=charge)
    assert charged == [Checkpoint(out).sha256]

    def refuse(_: str) -> None:
        raise BudgetExhausted("nothing is left")

    with pytest.raises(BudgetExhausted):
        train(folder, noise, charge=refuse)
    assert [path for path in folder.iterdir() if path.name.startswith("out-")] == [out]


def test_units_that_come_together_are_whole() -> None:
    units: Units = ((0,), (1, 2, 3), tuple(range(4, 30)), (30,))
    parts = list(dp_sgd._together([0, 1, 2, 3], units, 16))
    assert parts == [(0, 1), (2,), (3,)]


def test_gradients_that_are_in_memory_together_are_few(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient is as large as what is trained, so that the larger, the fewer examples."""
    sizes: list[int] = []
    together = dp_sgd._together

    def see(chosen: Sequence[int], units: Units, most: int) -> Iterator[tuple[int, ...]]:
        sizes.append(most)
        return together(chosen, units, most)

    monkeypatch.setattr(dp_sgd, "_together", see)
    noise = TrainingNoise(EVERYBODY, clip=0.5, divisor=8.0)
    parameters = load_model(folder / "base").named_parameters()
    trained = sum(p.numel() for name, p in parameters if "_embeddings." not in name)
    for most in (3, 1):
        monkeypatch.setattr(dp_sgd, "_NUMBERS", most * trained)
        train(folder, noise)
    monkeypatch.setattr(dp_sgd, "_NUMBERS", 1)  # one gradient has to be there
    train(folder, noise)
    assert sizes == [3, 1, 1]
