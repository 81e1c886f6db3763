"""Gram matrices of real models against X^T X over inputs that other hooks captured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Block, Group, Linear, Manifest
from blindmerge.merge import GramEvidence
from blindmerge.statistic import Array
from blindmerge_client.batches import Batch, batches
from blindmerge_client.collect.gram import collect_grams
from blindmerge_client.collect.moments import Gram
from blindmerge_client.collect.runner import BlockRunner
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.tasks import Text
from support.captured import captured_rows
from support.jobs import LABELS, noisy
from support.pico import ARCHITECTURES, Architecture, pico_encoder, pico_examples

TEXTS = pico_examples(9, seed=3).texts


class Case:
    """A model with everything that its Gram matrices need."""

    def __init__(self, folder: Path, architecture: Architecture) -> None:
        base = pico_encoder(folder / "base", architecture, labels=LABELS)
        self.own = noisy(base, folder / "own", seed=1)
        self.model = load_model(self.own)
        self.manifest: Manifest = Checkpoint(base).manifest
        self.tokenizer = load_tokenizer(base)
        self.modules = self.manifest.modules

    def batched(self, size: int = 4, texts: Sequence[Text] = TEXTS) -> list[Batch]:
        return batches(self.tokenizer, texts, 32, size)

    def grams(self, batched: Sequence[Batch], folder: Path) -> dict[str, GramEvidence]:
        repeated = self.manifest.repeated
        runner = BlockRunner(self.model, self.modules, batched, folder, repeated)
        return {
            name: evidence
            for block in self.manifest.blocks
            for name, evidence in collect_grams(self.model, runner, block).items()
        }

    @property
    def groups(self) -> list[Group]:
        return [group for block in self.manifest.blocks for group in block.groups]


@pytest.fixture(params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, request.param)


def summation_bound(rows: Array) -> Array:
    """Largest difference of two float64 sums of these products, in whatever order.

    Higham 2002, eq. 3.5: each is off by at most gamma_n sum |x_i x_j|, gamma_n = n u / (1 - n u),
    u = 2^-53; products of float32 numbers are exact. One n more covers the denominator, and eight
    the roundings of rows that are weighted.
    """
    return np.asarray(2 * (len(rows) + 9) * 2.0**-53 * (np.abs(rows).T @ np.abs(rows)))


def test_equals_x_transposed_x_over_a_full_forward_pass(case: Case, tmp_path: Path) -> None:
    batched = case.batched()
    assert len({batch.inputs["input_ids"].shape[1] for batch in batched}) > 1
    assert any((batch.inputs["attention_mask"] == 0).any() for batch in batched)
    grams = case.grams(batched, tmp_path / "states")
    rows = captured_rows(case.model, case.groups, batched)
    assert grams.keys() == rows.keys()
    for name, captured in rows.items():
        inputs = captured.rows
        assert grams[name].rows == captured.count
        assert grams[name].total.dtype == np.float64
        difference = np.abs(grams[name].total - inputs.T @ inputs)
        assert (difference <= summation_bound(inputs)).all(), name
        np.testing.assert_array_equal(grams[name].total, grams[name].total.T)


def test_rows_are_real_tokens_and_texts_in_the_head(case: Case, tmp_path: Path) -> None:
    grams = case.grams(case.batched(), tmp_path / "states")
    # Counted with the tokenizer alone, text by text, without any padding.
    tokens = sum(min(32, len(case.tokenizer(text)["input_ids"])) for text in TEXTS)
    for group in (group for group in case.groups if group.expert is None):
        head = group.rows in ("sequences", "last-tokens")
        runs = case.model.config.num_hidden_layers if group.repeated else 1
        rows = len(TEXTS) if head else tokens * runs
        assert grams[group.name].rows == rows
        assert grams[group.name].total.shape == (group.width, group.width)
        if group.bias and group.rows != "tokens-and-positions":
            assert grams[group.name].total[-1, -1] == rows  # ones times ones
    assert case.groups[-1].rows in ("sequences", "last-tokens")


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2-moe", "qwen3-moe"])
def test_every_token_has_its_experts(architecture: Architecture, tmp_path: Path) -> None:
    case = Case(tmp_path, architecture)
    grams = case.grams(case.batched(), tmp_path / "states")
    tokens = sum(min(32, len(case.tokenizer(text)["input_ids"])) for text in TEXTS)
    for block in case.manifest.blocks:
        experts = [group for group in block.groups if group.expert is not None]
        for rows in {group.rows for group in experts}:
            counts = [grams[group.name].rows for group in experts if group.rows == rows]
            assert len(counts) == 3  # two of which see a token
            assert sum(counts) == 2 * tokens > max(counts)


def test_query_key_and_value_share_one_matrix(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert")
    shared = [group for group in case.groups if len(group.layers) > 1]
    assert [len(group.layers) for group in shared] == [3, 3]


def test_the_order_of_batches_is_only_rounding(case: Case, tmp_path: Path) -> None:
    batched = case.batched()
    forward = case.grams(batched, tmp_path / "forward")
    backward = case.grams(batched[::-1], tmp_path / "backward")
    for name, captured in captured_rows(case.model, case.groups, batched).items():
        difference = np.abs(forward[name].total - backward[name].total)
        assert (difference <= summation_bound(captured.rows)).all()


def test_the_composition_of_batches_is_only_rounding(case: Case, tmp_path: Path) -> None:
    together = case.grams(case.batched(size=9), tmp_path / "together")
    alone = case.grams(case.batched(size=1), tmp_path / "alone")
    for name, captured in captured_rows(case.model, case.groups, case.batched()).items():
        inputs = captured.rows
        # Padding changes the order of float32 sums in attention: every input is then off by the
        # roundings of a chain of two layers, each fewer than 100 long, of numbers below its row's
        # largest: |dx| <= 200 * 2^-24 max|x|, and d(x y) <= |dx| |y| + |x| |dy|.
        off = 200 * 2.0**-24 * np.abs(inputs).max(axis=1, keepdims=True)
        bound = 2.0 * (off.T @ np.abs(inputs).max(axis=1, keepdims=True))
        assert together[name].rows == alone[name].rows
        assert (np.abs(together[name].total - alone[name].total) <= bound).all()


def test_dropout_is_off_and_no_gradient_stays(case: Case, tmp_path: Path) -> None:
    still = case.grams(case.batched(), tmp_path / "still")
    case.model.train()
    training = case.grams(case.batched(), tmp_path / "training")
    for name, evidence in still.items():
        np.testing.assert_array_equal(evidence.total, training[name].total)
    assert not case.model.training
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert all(parameter.requires_grad for parameter in case.model.parameters())


def test_no_hook_stays(case: Case, tmp_path: Path) -> None:
    case.grams(case.batched(), tmp_path / "states")
    for module in case.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in vars(module)


# Hand-made models: what transformers' models do not do, or should not.


class Toy(nn.Module):
    """One block `layer` with two linear layers, called as `self.call` says."""

    def __init__(self, call: Any, bias: bool = True) -> None:
        super().__init__()
        self.layer = ToyLayer(call, bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        del attention_mask
        numbers = torch.sin(torch.arange(1.0, 4.0) * input_ids[..., None].float())
        hidden: torch.Tensor = self.layer(numbers)
        return hidden


class ToyLayer(nn.Module):
    def __init__(self, call: Any, bias: bool) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3, bias=bias)
        self.b = nn.Linear(3, 3, bias=bias)
        self.call = call

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.call(self.a, self.b, hidden)
        return result


RIGHT_PADDED = ((1, 1, 0), (1, 1, 1))


def toy_grams(
    call: Any,
    folder: Path,
    bias: bool = True,
    mask: Sequence[Sequence[int]] = RIGHT_PADDED,
    folds: Sequence[int] = (0, 0),
) -> Mapping[str, GramEvidence]:
    layers = tuple(Linear(name=f"layer.{name}", outputs=3, bias=bias) for name in "ab")
    group = Group(name="both", inputs=3, rows="tokens", layers=layers)
    block = Block(name="layer", module="layer", groups=(group,), means=())
    model = Toy(call, bias)
    inputs = {"input_ids": torch.arange(6).view(2, 3), "attention_mask": torch.tensor(mask)}
    passes = [Batch((0, 1), inputs, fold=fold) for fold in folds]
    return collect_grams(model, BlockRunner(model, ["layer"], passes, folder), block)


@pytest.mark.parametrize("bias", [True, False])
def test_by_keyword_or_by_position_with_or_without_bias(bias: bool, tmp_path: Path) -> None:
    calls = [
        lambda a, b, x: a(x) + b(x),
        lambda a, b, x: a(input=x) + b(x),
        lambda a, b, x: a(input=x) + b(input=x),
    ]
    x = np.sin(np.arange(1.0, 4.0, dtype=np.float32) * np.arange(6.0, dtype=np.float32)[:, None])
    rows = np.delete(x, 2, axis=0).astype(np.float64)  # id 2 is padding
    rows = np.vstack([np.hstack([rows, np.ones((5, 1))]) if bias else rows] * 2)
    for number, call in enumerate(calls):
        gram = toy_grams(call, tmp_path / str(number), bias)["both"]
        assert gram.rows == 10
        # numpy's and torch's sine may differ by one unit in the last place of a float32.
        np.testing.assert_allclose(gram.total, rows.T @ rows, rtol=0, atol=10 * 2 * 2.0**-23)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "mask",
    [
        RIGHT_PADDED,
        ((0, 1, 1), (0, 0, 1)),
        ((1, 0, 1), (1, 1, 1)),
        ((1,) * 3,) * 2,
        ((0,) * 3,) * 2,
    ],
    ids=["right", "left", "hole", "none", "all"],
)
def test_padding_is_no_row_wherever_it_is(
    mask: Sequence[Sequence[int]], flat: bool, tmp_path: Path
) -> None:
    def call(a: nn.Linear, b: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        y = x.flatten(0, 1) if flat else x
        seen.append(x)
        both: torch.Tensor = a(y) + b(y)
        return both.view(x.shape)

    seen: list[torch.Tensor] = []
    gram = toy_grams(call, tmp_path, mask=mask, folds=[0])["both"]
    (x,) = seen
    rows = [x[text, place].double().numpy() for text, place in np.argwhere(np.array(mask))]
    extended = np.array([[*row, 1.0] for row in rows]).reshape(-1, 4)
    assert gram.rows == len(rows)
    np.testing.assert_allclose(gram.total, extended.T @ extended, rtol=0, atol=6 * 2 * 2.0**-53)


def test_sums_are_made_once_not_for_every_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[None] = []

    class Counted(Gram):
        def __init__(self, *arguments: Any) -> None:
            made.append(None)
            super().__init__(*arguments)

    monkeypatch.setattr("blindmerge_client.collect.gram.Gram", Counted)
    toy_grams(lambda a, b, x: a(x) + b(x), tmp_path, folds=[0, 1, 0, 1, 1])
    assert len(made) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, b, x: a(x) + b(2 * x), "'both' do not share one input"),
        (lambda a, b, x: a(x) + b(x.clone()), "'both' do not share one input"),
        (lambda a, b, x: a(x) + b(a(x)), r"'layer\.a' was called 2 times"),
        (lambda a, _b, x: a(x) + a(x), r"'layer\.a' was called 2 times"),
        (lambda a, b, x: a(x) + b(x) + b(x), r"'layer\.b' was called 2 times"),
        (lambda a, _b, x: a(x), r"'layer\.b' was not called"),
        (lambda _a, _b, x: x, r"'layer\.a' was not called"),
        (lambda a, b, x: a(x[:, 0])[:, None] + b(x[:, 0])[:, None], r"shape \[2, 3\]"),
        (lambda a, b, x: a(x.transpose(0, 1)) + b(x.transpose(0, 1)), r"shape \[3, 2, 3\]"),
    ],
)
def test_layers_that_break_the_rules_are_refused(call: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match=words):
        toy_grams(call, tmp_path)


def test_a_layer_that_is_not_called_in_the_last_batch_is_refused(tmp_path: Path) -> None:
    passes = []

    def once(a: nn.Linear, b: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        passes.append(x)
        first: torch.Tensor = a(x)
        return first if len(passes) == 2 else first + b(x)

    with pytest.raises(CheckpointInvalid, match=r"'layer\.b' was not called"):
        toy_grams(once, tmp_path)


def test_tokens_are_not_taken_for_sequences(tmp_path: Path) -> None:
    # A flattened [tokens, inputs] is no [sequences, inputs], though both have two dimensions.
    group = Group(
        name="head",
        inputs=3,
        rows="sequences",
        layers=(Linear(name="layer.a", outputs=3, bias=True),),
    )
    block = Block(name="layer", module="layer", groups=(group,), means=())
    model = Toy(lambda a, _b, x: a(x.flatten(0, 1)).view(x.shape))
    ones = torch.ones(2, 3, dtype=torch.int64)
    batch = Batch((0, 1), {"input_ids": ones, "attention_mask": ones})
    runner = BlockRunner(model, ["layer"], [batch], tmp_path)
    with pytest.raises(CheckpointInvalid, match=r"\[6, 3\].*sequences"):
        collect_grams(model, runner, block)
