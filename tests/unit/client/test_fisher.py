"""The diagonal Fisher against gradients of one example at a time, by autograd, in float64."""

import copy
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
from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Manifest
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.batches import batches
from blindmerge_client.collect.fisher import collect_fisher, read_fisher
from blindmerge_client.models import load_model, load_tokenizer
from support.fishers import assert_close
from support.jobs import LABELS, edit_weights, noisy
from support.pico import Architecture, pico_encoder, pico_examples

ARCHITECTURES: tuple[Architecture, ...] = (
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "gpt2",
    "qwen3",
    "gemma2",
)
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

    def collect(self, size: int = 3, folder: Path | None = None) -> dict[str, Array]:
        folder = folder or self.folder
        batched = batches(self.tokenizer, TEXTS, 32, size)
        collect_fisher(self.model, self.task, self.manifest.shapes, batched, folder)
        return read_fisher(folder, list(self.manifest.shapes))

    def direct(self) -> dict[str, Array]:
        """mean over x of sum over y of p(y|x) (d log p(y|x) / d theta)^2, word for word."""
        model: Any = copy.deepcopy(self.model)
        model.double().eval()
        totals = {name: np.zeros(shape) for name, shape in self.manifest.shapes.items()}
        for text in TEXTS:
            inputs = self.tokenizer(text, return_tensors="pt")
            for outcome in OUTCOMES[self.task](model.config.num_labels):
                model.zero_grad()
                p, log_p = outcome(model(**inputs).logits[0])
                log_p.backward()
                for name, parameter in model.named_parameters():
                    if parameter.grad is not None:
                        totals[name] += p * parameter.grad.numpy() ** 2 / len(TEXTS)
        return totals


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
    linear = {name: s for name, s in case.manifest.shapes.items() if "dense" in name}
    batched = batches(case.tokenizer, TEXTS, 32, 3)
    collect_fisher(case.model, case.task, linear, batched, tmp_path / "some")
    assert {path.stem for path in (tmp_path / "some").iterdir()} == linear.keys()
    for name, array in read_fisher(tmp_path / "some", list(linear)).items():
        np.testing.assert_array_equal(array, every[name])


@pytest.fixture(params=ARCHITECTURES)
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


def test_squares_of_batch_gradients_would_fail(case: Case) -> None:
    # The mistake of other implementations: this test suite can tell them from the true one.
    found = case.direct()
    model: Any = copy.deepcopy(case.model).double()
    (batch,) = batches(case.tokenizer, TEXTS, 32, len(TEXTS))
    log_p: Any = torch.log_softmax(model(**batch.inputs).logits, dim=1)
    log_p[:, 0].mean().backward()
    wrong = {
        name: p.grad.numpy() ** 2 for name, p in model.named_parameters() if p.grad is not None
    }
    with pytest.raises(AssertionError):
        assert_close({name: wrong.get(name, found[name]) for name in found}, found)


def test_the_composition_of_batches_is_only_rounding(case: Case, tmp_path: Path) -> None:
    assert_close(case.collect(1, tmp_path / "alone"), case.collect(7, tmp_path / "together"))


def test_words_that_do_not_occur_and_padding_have_no_information(case: Case) -> None:
    found = case.collect(7)
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
    assert not any(module._forward_hooks for module in case.model.modules())


class Scale(nn.Module):
    """A layer that nobody has a rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.weight


def test_a_module_without_a_rule_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LABELS)
    case.model.get_submodule("bert.encoder.layer.1.output").LayerNorm = Scale()
    with pytest.raises(CheckpointInvalid, match=r"layer\.1\.output\.LayerNorm', a Scale"):
        case.collect()
    assert not case.folder.exists()
    assert list(tmp_path.glob(".fisher*")) == []
    assert all(p.requires_grad for p in case.model.parameters())
    assert not any(module._forward_hooks for module in case.model.modules())


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


def test_a_table_that_all_examples_share_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, "mpnet", LABELS)
    with pytest.raises(CheckpointInvalid, match=r"no Fisher rule for .*relative_attention_bias"):
        case.collect()
    assert not case.folder.exists()
