"""Plain torch modules: what goes into their layers, and least squares over it.

The reference is computed by hand in `support.plain_modules`.
"""

import copy
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from blindmerge.errors import CheckpointInvalid, UnknownTensor
from blindmerge.merge import BlockEvidence, RegMean
from blindmerge.statistic import Array
from blindmerge_client.modules import Pass, manifest_from_module, module_evidence
from support.plain_modules import (
    CASES,
    HEADS,
    INNER,
    OWNERS,
    WIDTH,
    Reader,
    made,
    owners_of,
    texts,
)
from support.tree import ROOT

METHOD = RegMean(ridge=0.01, rows_factor=0.0)
each_case = pytest.mark.parametrize("case", CASES)


def evidence_of(base: nn.Module, owners: Sequence[nn.Module], data: Any) -> list[BlockEvidence]:
    (block,) = manifest_from_module(base).blocks
    state = base.state_dict()
    return [module_evidence(own, state, block, data(k)) for k, own in enumerate(owners)]


def merged(base: nn.Module, found: Sequence[BlockEvidence]) -> dict[str, Array]:
    (block,) = manifest_from_module(base).blocks
    total = METHOD.contribution(block, found[0])
    for each in found[1:]:
        total = total + METHOD.contribution(block, each)
    return dict(METHOD.solve(block, total, found[0].base).weights)


@each_case
def test_every_parameter_has_exactly_one_rule(case: str) -> None:
    base = made(*CASES[case][0])
    manifest = manifest_from_module(base)
    shapes = {name: tuple(each.shape) for name, each in base.named_parameters()}
    assert manifest.shapes == shapes


@each_case
def test_gram_matrices_are_of_what_the_layers_get(case: str) -> None:
    kind, data, reference = CASES[case]
    base = made(*kind)
    own = owners_of(base)[0]
    before = {name: each.clone() for name, each in own.state_dict().items()}
    (found,) = evidence_of(base, [own], data)
    rows = reference(own, data(0))
    assert found.grams.keys() == rows.keys()
    for name, x in rows.items():
        gram = found.grams[name]
        assert gram.rows == len(x), name
        width = gram.total.shape[0]
        extended = np.hstack([x, np.ones((len(x), width - x.shape[1]))])
        # float32 through a few layers of width 12, about 100 roundings; sums are in float64.
        scale = np.abs(extended).T @ np.abs(extended)
        assert (np.abs(gram.total - extended.T @ extended) <= 100 * 2.0**-23 * scale).all(), name
    # Nothing of what made inputs visible is left.
    assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(own.state_dict()[name], each) for name, each in before.items())
    assert torch.backends.mha.get_fastpath_enabled()


@each_case
def test_merged_layers_are_the_least_squares_solution(case: str) -> None:
    kind, data, reference = CASES[case]
    base = made(*kind)
    owners = owners_of(base)
    found = merged(base, evidence_of(base, owners, data))
    (block,) = manifest_from_module(base).blocks
    states = [
        {name: each.detach().double().numpy() for name, each in own.named_parameters()}
        for own in owners
    ]
    rows = [reference(own, data(k)) for k, own in enumerate(owners)]
    for group in block.groups:
        x = [
            np.hstack([r[group.name], np.ones((len(r[group.name]), group.width - group.inputs))])
            for r in rows
        ]
        scaled = [each / np.sqrt(len(each)) for each in x]
        t = np.mean(sum((each**2).sum(axis=0) for each in scaled))
        ridge = np.sqrt(METHOD.ridge * t) * np.eye(group.width)
        for layer in group.layers:
            theirs = [matrix(layer, state) for state in states]
            targets = [a @ w for a, w in zip(scaled, theirs, strict=True)]
            mean = np.mean(theirs, axis=0)
            expected = np.linalg.lstsq(
                np.vstack([*scaled, ridge]), np.vstack([*targets, ridge @ mean]), rcond=None
            )[0]
            # Inputs are off by 100 roundings of float32, times a condition of at most 100 width,
            # on differences of 0.2 between owners.
            bound = 100 * 2.0**-23 * 100 * group.width * 0.2
            difference = np.abs(matrix(layer, found) - expected).max()
            assert difference <= bound, layer.name
            assert np.abs(mean - expected).max() > 2 * difference, layer.name


def matrix(layer: Any, weights: Mapping[str, Array]) -> Array:
    """[W; b] of a layer, cut out of the parameters by hand."""
    if layer.stored is None:
        parts = [weights[f"{layer.name}.weight"].T]
        return np.vstack([*parts, weights[f"{layer.name}.bias"]] if layer.bias else parts)
    part = slice(layer.stored.start, layer.stored.start + layer.outputs)
    whole = weights[layer.stored.weight]
    parts = [whole.reshape(len(whole), -1)[part].T]
    return np.vstack([*parts, weights[layer.stored.bias][part]] if layer.bias else parts)


@each_case
def test_equal_owners_give_their_model_back_and_it_runs(case: str) -> None:
    kind, data, _ = CASES[case]
    base = made(*kind)
    own = owners_of(base)[0]
    (one,) = evidence_of(base, [own], data)
    found = merged(base, [one] * OWNERS)
    result = copy.deepcopy(base).eval()
    state = {name: torch.from_numpy(each).float() for name, each in found.items()}
    result.load_state_dict(state, strict=True)
    for name, each in own.named_parameters():
        assert torch.equal(state[name], each.detach()), name
    each = data(0)[0]
    with torch.no_grad():
        assert torch.isfinite(result(*each.args, **each.kwargs)).all()


def test_hooks_alone_would_see_nothing_of_an_encoder() -> None:
    """What this module is for: in evaluation mode no part of the layer is called."""
    model = made(Reader).eval()
    seen: list[str] = []
    for name, module in model.named_modules():
        if name.endswith("out_proj"):
            module.register_forward_pre_hook(lambda _m, _x, name=name: seen.append(name))
    each = texts(0)[0]
    with torch.no_grad():
        model(*each.args, **each.kwargs)
    assert seen == []


def test_tied_weights_are_there_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9)
            self.head.weight = self.words.weight

    manifest = manifest_from_module(Tied())
    assert manifest.shapes == {"words.weight": (9, 4), "head.bias": (9,)}
    assert not manifest.blocks[0].groups


class Odd(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


ODD: list[tuple[nn.Module, str]] = [
    (nn.LSTM(3, 4), r"'part\.bias_hh_l0' of the module 'part', a LSTM"),
    (nn.BatchNorm1d(3), r"'part\.bias' of the module 'part', a BatchNorm1d"),
    (nn.Conv2d(3, 4, 3, padding=1, stride=3), "convolution 'part'"),
    (nn.Conv2d(3, 4, 3), "convolution 'part'"),
    (nn.Conv2d(4, 4, 2, stride=2, groups=2), "convolution 'part'"),
    (nn.MultiheadAttention(4, 2, kdim=3), "attention 'part'"),
]


@pytest.mark.parametrize(("part", "words"), ODD)
def test_what_has_no_rule_is_named_unless_it_is_to_be_averaged(part: nn.Module, words: str) -> None:
    with pytest.raises(UnknownTensor, match=words):
        manifest_from_module(Odd(part))
    manifest = manifest_from_module(Odd(part), averaged=("part",))
    assert not manifest.blocks[0].groups
    assert manifest.shapes.keys() == {f"part.{name}" for name, _ in part.named_parameters()}


def test_a_layer_alone_is_refused() -> None:
    with pytest.raises(UnknownTensor, match="Linear alone"):
        manifest_from_module(nn.Linear(2, 2))


def refused(model: nn.Module, each: Pass, words: str) -> None:
    (block,) = manifest_from_module(model).blocks
    with pytest.raises(CheckpointInvalid, match=words):
        module_evidence(model, model.state_dict(), block, [each])


def test_a_layer_that_is_called_twice_or_never_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.times = times

        def forward(self, x: torch.Tensor) -> Any:
            for _ in range(self.times):
                x = self.layer(x)
            return x

    x = torch.zeros(3, WIDTH)
    refused(Twice(2), Pass((x,)), "called 2 times")
    refused(Twice(0), Pass((x,)), "was not called")


def test_a_mask_of_another_shape_is_refused() -> None:
    (each, *_) = texts(0)
    assert each.mask is not None
    refused(made(Reader), Pass(each.args, each.kwargs, each.mask[:, :-1]), "does not fit rows")


def test_an_encoders_attention_on_different_inputs_is_refused() -> None:
    class Crossed(nn.TransformerEncoderLayer):
        def _sa_block(self, x: Any, *_args: Any, **_kwargs: Any) -> Any:
            return self.self_attn(x, x + 1, x)[0]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Crossed(WIDTH, HEADS, INNER, batch_first=True)

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x)

    refused(Model(), Pass((torch.zeros(2, 3, WIDTH),)), "called with different inputs")


def test_a_base_of_another_shape_is_refused() -> None:
    model = made(Reader)
    (block,) = manifest_from_module(model).blocks
    state = dict(model.state_dict()) | {"head.weight": torch.zeros(4, WIDTH)}
    with pytest.raises(CheckpointInvalid, match=r"no 'head\.weight' of the shape \[3, 8\]"):
        module_evidence(model, state, block, texts(0))


def test_the_example_runs_and_regmean_is_better_there_than_the_average() -> None:
    errors = runpy.run_path(str(ROOT / "examples/plain_module.py"))["main"]()
    assert errors["regmean"] < errors["average"]
