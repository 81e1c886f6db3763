"""The diagonal Fisher of language models: unbiased, with no more variance than is promised."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from transformers import PreTrainedModel

from blindmerge.checkpoint import Checkpoint
from blindmerge.manifest import Manifest
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.batches import Batch, batches
from blindmerge_client.collect import fisher as module
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.tasks import Pair, Text
from support.fishers import as_in_file, assert_close, collected, in_float64
from support.jobs import noisy
from support.pico import LANGUAGE_MODELS, Architecture, pico_encoder, pico_texts

TEXTS: dict[Task, Text] = {
    "causal-lm": "so it was good",
    "seq2seq": Pair("the film was bad", "so sad"),
}
Signs = Callable[[Batch, Sequence[int]], torch.Tensor]


class Case:
    def __init__(self, folder: Path, architecture: Architecture, task: Task) -> None:
        base = pico_encoder(folder / "base", architecture, task=task)
        self.model: PreTrainedModel = load_model(noisy(base, folder / "own", seed=1))
        self.manifest: Manifest = Checkpoint(base).manifest
        self.task = task
        (self.example,) = batches(load_tokenizer(base), [TEXTS[task]], 32, 1)
        self.folder = folder / "fisher"

    def collect(self, times: int) -> dict[str, Array]:
        """The mean of as many estimates for the one text."""
        examples = [self.example] * times
        return collected(self.model, self.task, self.manifest, examples, self.folder)

    def direct(self) -> dict[str, Array]:
        """Of every token that is predicted, sum over y of p(y|x) (d log p(y|x) / d theta)^2."""
        model = in_float64(self.model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        totals = {name: np.zeros(parameter.shape) for name, parameter in parameters.items()}
        logits = model(**self.example.inputs).logits[0]
        # Nothing comes after a text; what a text becomes is predicted from its first token on.
        predicting = logits[:-1] if self.task == "causal-lm" else logits
        assert len(predicting) >= 2
        for log_p in torch.log_softmax(predicting, dim=-1):
            for each in log_p:
                model.zero_grad()
                each.backward(retain_graph=True)
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        totals[name] += float(each.detach().exp()) * parameter.grad.numpy() ** 2
        return as_in_file(totals, self.manifest.shapes)


def in_turn(patterns: Array) -> Signs:
    """The rows of `patterns`, one for each time."""
    rows = iter(torch.from_numpy(patterns))

    def signs(_example: Batch, shape: Sequence[int]) -> torch.Tensor:
        row: torch.Tensor = next(rows)
        return row[: int(np.prod(shape))].reshape(tuple(shape))

    return signs


@pytest.mark.parametrize(("architecture", "task"), LANGUAGE_MODELS)
def test_over_orthogonal_signs_the_mean_is_fisher(
    architecture: Architecture, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares need of signs that the mean of a product of two is zero: Hadamard's have that."""
    case = Case(tmp_path, architecture, task)
    numbers = case.model(**case.example.inputs).logits.numel()
    size = 2 ** int(np.ceil(np.log2(numbers)))
    monkeypatch.setattr(module, "_signs", in_turn(hadamard(size).astype(np.float64)))
    assert_close(case.collect(size), case.direct())


def test_random_signs_come_near_the_expectation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, "gpt2", "causal-lm")
    draws, exact = 512, case.direct()
    patterns = np.random.default_rng(3).choice((-1.0, 1.0), (draws, 1024))
    monkeypatch.setattr(module, "_signs", in_turn(patterns))
    found = case.collect(draws)
    error = sum(float(((found[name] - f) ** 2).sum()) for name, f in exact.items())
    scale = sum(float((f**2).sum()) for f in exact.values())
    # The mean of the error is below 2 F^2 / draws; by Markov 16 times that is a chance of 1/16.
    assert error <= 16 * 2 * scale / draws
    assert 16 * 2 / draws < 1 / 4, "which tells the true Fisher from one that is wrong by half"


def test_signs_are_fair_and_the_examples_own(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pico_encoder(tmp_path, "gpt2", task="causal-lm"))
    texts = sorted(set(pico_texts(100).texts))
    drawn = []
    for example in batches(tokenizer, texts, 32, 1):
        signs = module._signs(example, (1, 5, 82))
        assert set(signs.flatten().tolist()) == {-1, 1}
        assert torch.equal(module._signs(example, (1, 5, 82)), signs)
        drawn.append(signs.double().flatten())
    matrix = torch.stack(drawn)
    # Means of independent signs: none of 410 over the texts is six standard deviations off, nor
    # is the correlation of any two texts.
    assert matrix.mean(dim=0).abs().max() < 6 / np.sqrt(len(drawn))
    products = matrix @ matrix.T / matrix.shape[1]
    assert (products - torch.eye(len(drawn))).abs().max() < 6 / np.sqrt(matrix.shape[1])


def test_asking_again_gives_the_same_numbers(tmp_path: Path) -> None:
    case = Case(tmp_path, "t5", "seq2seq")
    first = case.collect(1)
    case.folder = tmp_path / "again"
    for name, fisher in case.collect(1).items():
        np.testing.assert_array_equal(fisher, first[name])
