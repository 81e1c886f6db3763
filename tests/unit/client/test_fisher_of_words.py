"""The diagonal Fisher of words: exact where it must be, and unbiased with a known variance."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from blindmerge.checkpoint import Checkpoint
from blindmerge.manifest import Manifest
from blindmerge.statistic import Array
from blindmerge_client.batches import Batch, batches
from blindmerge_client.collect import fisher as module
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.tasks import Text
from support.fishers import assert_close, collected, in_float64
from support.jobs import noisy
from support.pico import TAGS, Architecture, pico_encoder, pico_sentences

ARCHITECTURES: tuple[Architecture, ...] = ("bert", "roberta", "distilbert")


class Case:
    def __init__(
        self, folder: Path, architecture: Architecture = "bert", labels: Sequence[str] = TAGS
    ) -> None:
        base = pico_encoder(
            folder / "base", architecture, labels=labels, task="token-classification"
        )
        self.model: PreTrainedModel = load_model(noisy(base, folder / "own", seed=1))
        self.manifest: Manifest = Checkpoint(base).manifest
        self.tokenizer = load_tokenizer(base)
        self.folder = folder

    def collect(self, texts: Sequence[Text], name: str = "fisher") -> dict[str, Array]:
        alone = batches(self.tokenizer, texts, 32, 1)
        return collected(
            self.model, "token-classification", self.manifest, alone, self.folder / name
        )

    def by_word(self, text: Text) -> Iterator[dict[str, Array]]:
        """sum over y of p(y|x) (d log p(y|x) / d theta)^2 of every word, by autograd in float64."""
        model = in_float64(self.model)
        inputs = self.tokenizer(list(text), is_split_into_words=True, return_tensors="pt")
        for word in range(len(text)):
            place = inputs.word_ids(0).index(word)
            totals = {name: np.zeros(shape) for name, shape in self.manifest.shapes.items()}
            for label in range(model.config.num_labels):
                model.zero_grad()
                log_p: Any = torch.log_softmax(model(**inputs).logits[0, place], dim=0)[label]
                log_p.backward()
                p = float(log_p.detach().exp())
                for name, parameter in model.named_parameters():
                    if parameter.grad is not None:
                        totals[name] += p * parameter.grad.numpy() ** 2
            yield totals


def summed(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_word_is_exact(architecture: Architecture, tmp_path: Path) -> None:
    case = Case(tmp_path, architecture)
    texts = [("zebra",), ("good",), ("film",)]
    expected = summed([part for text in texts for part in case.by_word(text)])
    assert_close(case.collect(texts), {name: f / len(texts) for name, f in expected.items()})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_over_all_signs_the_mean_is_fisher_and_the_variance_what_is_promised(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two labels a rotation is 1 or -1: a handful of equally likely cases, all of them."""
    text = ("a", "zebra", "we", "love")
    case = Case(tmp_path, architecture, labels=("B-MOOD", "O"))
    estimates = []
    for number, signs in enumerate(product([1.0, -1.0], repeat=len(text))):

        def fixed(batch: Batch, size: int, signs: Sequence[float] = signs) -> torch.Tensor:
            assert size == 1
            assert batch.words is not None
            by_word = torch.tensor([*signs, 0.0], dtype=torch.float64)  # the last for -1
            return by_word[batch.words][..., None, None]

        monkeypatch.setattr(module, "_rotations", fixed)
        estimates.append(case.collect([text], f"fisher-{number}"))
    words = list(case.by_word(text))
    mean = {name: f / len(estimates) for name, f in summed(estimates).items()}
    assert_close(mean, summed(words))
    for name, exact in summed(words).items():
        variance = 2 * (exact**2 - np.sum([word[name] ** 2 for word in words], axis=0))
        found = np.mean([(each[name] - exact) ** 2 for each in estimates], axis=0)
        # Float32 moves an estimate by some 2 * 1000 * 2^-24 = 1.2e-4 of the largest
        # (`assert_close`), its squared distance by some 3e-4.
        assert np.abs(found - variance).max() <= 1e-3 * max(variance.max(), 1e-12), name


def test_many_sentences_come_near_the_expectation(tmp_path: Path) -> None:
    case = Case(tmp_path)
    texts = pico_sentences(120, seed=2).texts
    found = case.collect(texts)
    error = variance = scale = 0.0
    words = [list(case.by_word(text)) for text in texts]
    for name in found:
        exact = np.sum([word[name] for text in words for word in text], axis=0) / len(texts)
        error += float(((found[name] - exact) ** 2).sum())
        scale += float((exact**2).sum())
        for text in words:
            s = np.array([word[name] for word in text])
            spread = 2 / (len(TAGS) - 1) * (s.sum(axis=0) ** 2 - (s**2).sum(axis=0))
            variance += float(spread.sum()) / len(texts) ** 2
    # The mean of the error is the variance, so Markov bounds the chance of 16 times as much by
    # 1/16. That must still tell the true Fisher from one that is wrong by half.
    assert error <= 16 * variance
    assert 16 * variance < scale / 4


def test_only_first_tokens_of_words_count(tmp_path: Path) -> None:
    """Special tokens and the rest of a word have logits too, but no label."""
    case = Case(tmp_path)
    batched = batches(case.tokenizer, [("zebra", "is", "good")], 32, 1)
    (batch,) = batched
    assert batch.words is not None
    logits = case.model(**batch.inputs).logits.detach()
    for direction in module._directions("token-classification", batch, logits.double()):
        touched = direction.abs().sum(dim=-1) > 0
        assert torch.equal(touched, batch.words >= 0)
    assert int((batch.words >= 0).sum()) == 3 < int(batch.inputs["attention_mask"].sum()) - 2


def test_rotations_are_orthogonal_uniform_and_the_examples_own(tmp_path: Path) -> None:
    case = Case(tmp_path)
    texts = pico_sentences(200).texts
    found = {}
    for batch in batches(case.tokenizer, texts, 32, 1):
        (index,) = batch.indices
        (found[index],) = module._rotations(batch, 3)
    for again in batches(case.tokenizer, texts[::-1], 32, 1):  # whatever else there is
        (index,) = again.indices
        (rotation,) = module._rotations(again, 3)
        assert torch.equal(rotation, found[len(texts) - 1 - index])
    # A sentence occurs twice at most; the rest is independent.
    rotations = torch.cat(list(found.values()))
    product = rotations @ rotations.transpose(-1, -2)
    # Householder QR: off by a few dozen roundings.
    assert (product - torch.eye(3, dtype=torch.float64)).abs().max() < 50 * 2**-53
    # An entry has mean 0 and variance 1/3; of nine means none is 5 standard deviations off.
    assert rotations.mean(dim=0).abs().max() < 5 / np.sqrt(3 * len(rotations))
