"""The diagonal Fisher against gradients of one example at a time, by autograd, in float64."""

import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, NotFinite
from blindmerge.manifest import Manifest
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.batches import Batch, batches
from blindmerge_client.collect.fisher import collect_fisher, read_fisher
from blindmerge_client.models import load_model, load_tokenizer
from support.fishers import as_in_file, assert_close, collected, in_float64
from support.jobs import LABELS, edit_weights, noisy
from support.pico import ARCHITECTURES, Architecture, pico_encoder, pico_examples

TEXTS = pico_examples(7, seed=5).texts


Outcome: TypeAlias = Callable[[Any], tuple[float, Any]]
"""What y may be: its probability and log p(y|x), from the logits of x."""


class Case:
    def __init__(
        self,
        folder: Path,
        architecture: Architecture,
        labels: Sequence[str],
        task: Task = "single-label",
    ) -> None:
        base = pico_encoder(folder / "base", architecture, labels=labels, task=task)
        self.task = task
        own = noisy(base, folder / "own", seed=1)

        def sharpen(tensors: dict[str, Any]) -> None:
            # Labels with clearly different probabilities: their order and weight must matter.
            for name in tensors:
                if name.startswith("classifier.") and name.endswith(".bias"):
                    tensors[name] += np.linspace(-1, 1, tensors[name].size, dtype=np.float32)

        self.model: PreTrainedModel = load_model(edit_weights(own, sharpen))
        self.manifest: Manifest = Checkpoint(base).manifest
        self.tokenizer = load_tokenizer(base)
        self.folder = folder / "fisher"

    def collect(self, folder: Path | None = None) -> dict[str, Array]:
        return collected(self.model, self.task, self.manifest, self.alone(), folder or self.folder)

    def alone(self) -> list[Batch]:
        return batches(self.tokenizer, TEXTS, 32, 1)

    def direct(self) -> dict[str, Array]:
        """mean over x of sum over y of p(y|x) (d log p(y|x) / d theta)^2, word for word."""
        model = in_float64(self.model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        totals = {name: np.zeros(parameter.shape) for name, parameter in parameters.items()}
        for text in TEXTS:
            inputs = self.tokenizer(text, return_tensors="pt")
            for outcome in OUTCOMES[self.task](model.config.num_labels):
                model.zero_grad()
                p, log_p = outcome(model(**inputs).logits[0])
                log_p.backward()
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        totals[name] += p * parameter.grad.numpy() ** 2 / len(TEXTS)
        return as_in_file(totals, self.manifest.shapes)


def one_label(labels: int) -> Iterator[Outcome]:
    """Every label, with its probability."""
    for label in range(labels):

        def outcome(logits: Any, label: int = label) -> tuple[float, Any]:
            log_p = torch.log_softmax(logits, dim=0)[label]
            return float(log_p.detach().exp()), log_p

        yield outcome


def each_label(labels: int) -> Iterator[Outcome]:
    """Every set of labels, with its probability."""
    for holds in product((0.0, 1.0), repeat=labels):

        def outcome(logits: Any, holds: tuple[float, ...] = holds) -> tuple[float, Any]:
            y = torch.tensor(holds, dtype=torch.float64)
            log_p = -nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
            return float(log_p.detach().exp()), log_p

        yield outcome


def a_number(_labels: int) -> Iterator[Outcome]:
    """Two numbers, one standard deviation off: their mean of any square is that of N(f, 1)."""
    for off in (-1.0, 1.0):

        def outcome(logits: Any, off: float = off) -> tuple[float, Any]:
            y = float(logits.detach()[0]) + off
            return 0.5, -0.5 * (y - logits[0]) ** 2

        yield outcome


OUTCOMES: dict[Task, Callable[[int], Iterator[Outcome]]] = {
    "single-label": one_label,
    "multi-label": each_label,
    "regression": a_number,
}


def test_of_some_tensors_it_is_the_same(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LABELS)
    every = case.collect()
    (block,) = [b for b in case.manifest.blocks if b.name.endswith("layer.1")]
    some = [name for name in block.shapes if "dense" in name]
    collect_fisher(case.model, case.task, [(block, some)], case.alone(), tmp_path / "some")
    assert {path.stem for path in (tmp_path / "some").iterdir()} == set(some)
    for name, array in read_fisher(tmp_path / "some", block, some).items():
        np.testing.assert_array_equal(array, every[name])


@pytest.fixture(params=["bert", "gpt2", "mixtral"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, request.param, LABELS)


@pytest.mark.parametrize("labels", [LABELS, ("no", "yes")])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_squared_gradients_of_one_example_at_a_time(
    architecture: Architecture, labels: Sequence[str], tmp_path: Path
) -> None:
    case = Case(tmp_path, architecture, labels)
    found = case.collect()
    assert_close(found, case.direct())
    # Every kind of parameter took part; of embeddings only rows that occur.
    for name, fisher in found.items():
        assert fisher.dtype == np.float64
        assert (fisher >= 0).all()
        assert fisher.any() or name.endswith(("key.bias", "k_lin.bias")), name


@pytest.mark.parametrize(("task", "labels"), [("multi-label", LABELS), ("regression", ("mood",))])
def test_the_likelihood_is_the_tasks(task: Task, labels: Sequence[str], tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", labels, task)
    assert_close(case.collect(), case.direct())


def test_several_examples_at_once_are_refused(tmp_path: Path) -> None:
    # The mistake of other implementations: the square of a sum is another quantity.
    case = Case(tmp_path, "bert", LABELS)
    several = batches(case.tokenizer, TEXTS, 32, 2)
    with pytest.raises(ValueError, match="square of a sum"):
        collected(case.model, case.task, case.manifest, several, case.folder)
    assert not case.folder.exists()


def test_squares_of_batch_gradients_would_fail(case: Case) -> None:
    # This test suite can tell them from the true ones.
    found = case.direct()
    model = in_float64(case.model)
    (batch,) = batches(case.tokenizer, TEXTS, 32, len(TEXTS))
    log_p: Any = torch.log_softmax(model(**batch.inputs).logits, dim=1)
    log_p[:, 0].mean().backward()
    wrong = {
        name: p.grad.numpy() ** 2 for name, p in model.named_parameters() if p.grad is not None
    }
    with pytest.raises(AssertionError):
        assert_close({name: wrong.get(name, found[name]) for name in found}, found)


def test_words_that_do_not_occur_and_padding_have_no_information(case: Case) -> None:
    found = case.collect()
    words = ("word_embeddings.weight", "wte.weight", "embed_tokens.weight")
    name = next(name for name in found if name.endswith(words))
    used = {token for text in TEXTS for token in case.tokenizer(text)["input_ids"]}
    assert case.tokenizer.pad_token_id not in used
    rows = {int(row) for row in np.flatnonzero(found[name].any(axis=1))}
    assert rows == used


def test_the_model_is_left_as_it_was_but_in_evaluation(case: Case) -> None:
    case.model.train()
    frozen = [p for i, p in enumerate(case.model.parameters()) if i % 3 == 0]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [p.requires_grad for p in case.model.parameters()]
    state = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    case.collect()
    assert [p.requires_grad for p in case.model.parameters()] == before
    assert all(p.grad is None for p in case.model.parameters())
    assert not case.model.training
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert not any(p._post_accumulate_grad_hooks for p in case.model.parameters())
    assert not any(m.sparse for m in case.model.modules() if isinstance(m, nn.Embedding))


class Scale(nn.Module):
    """A layer of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 16))
        self.bias = nn.Parameter(torch.zeros(16))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.weight + self.bias


def test_modules_of_any_kind_take_part(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LABELS)
    case.model.get_submodule("bert.encoder.layer.1.output").LayerNorm = Scale()
    found = case.collect()
    assert found["bert.encoder.layer.1.output.LayerNorm.weight"].any()
    assert_close(found, case.direct())


def test_a_tensor_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LABELS)
    case.model.get_submodule("bert.encoder.layer.1.output").LayerNorm = nn.Identity()
    with pytest.raises(CheckpointInvalid, match=r"no place for .*layer\.1\.output\.LayerNorm"):
        case.collect()
    assert not case.folder.exists()
    assert list(tmp_path.glob(".fisher*")) == []


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_outputs_that_are_not_numbers_are_refused(number: float, tmp_path: Path) -> None:
    # Weights may be finite and outputs not, after training that went astray.
    case = Case(tmp_path, "bert", LABELS)
    with torch.no_grad():
        case.model.get_parameter("classifier.bias")[0] = number
    with pytest.raises(NotFinite, match="outputs of your model"):
        case.collect()
    assert not case.folder.exists()
    assert list(tmp_path.glob(".fisher*")) == []


def test_a_whole_folder_is_used_again(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LABELS)
    before = case.collect()
    case.model = None  # type: ignore[assignment]  # nothing is computed
    for name, fisher in case.collect().items():
        np.testing.assert_array_equal(fisher, before[name])


def test_a_run_that_dies_leaves_nothing_and_the_next_one_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, "bert", LABELS)
    calls: list[int] = []
    backward = torch.autograd.backward

    def die(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        backward(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", die)
    with pytest.raises(KeyboardInterrupt):
        case.collect()
    monkeypatch.undo()
    assert not case.folder.exists()
    assert_close(case.collect(), case.direct())


def test_nobody_else_may_look_into_the_folder(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LABELS)
    case.collect()
    assert stat.S_IMODE(case.folder.stat().st_mode) == 0o700
