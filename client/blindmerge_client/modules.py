"""Models that are plain `torch.nn` modules: their manifest, and what goes into their layers.

For Flower apps with a model of their own:

    manifest = manifest_from_module(model)
    (block,) = manifest.blocks
    evidence = module_evidence(model, base, block, passes)   # base: state of the common start
    statistic = RegMean().contribution(block, evidence)      # sum over owners, then `solve`

`nn.MultiheadAttention` keeps queries, keys and values in one bare parameter, and multiplies by
`out_proj` without calling it; in evaluation mode `nn.TransformerEncoderLayer` calls none of its
parts. So while inputs are watched, the fast path is off, and attention runs in steps that hooks
can see. What the model computes stays the same up to rounding.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from blindmerge.errors import CheckpointInvalid, UnknownTensor
from blindmerge.manifest import Block, Group, Linear, Manifest, Mean, Stored
from blindmerge.merge import BlockEvidence, GramEvidence
from blindmerge.statistic import Array
from blindmerge_client.batches import Batch
from blindmerge_client.collect.inputs import watched
from blindmerge_client.collect.moments import Gram

__all__ = ["Pass", "manifest_from_module", "module_evidence"]

_AVERAGED = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
# Stand-ins within an attention, through which hooks see what it is called with.
_INPUTS = ("query_input", "key_input", "value_input")


@dataclass(frozen=True, slots=True)
class Pass:
    """A call of the model.

    args, kwargs: its arguments.   mask: which rows count, True for a real one, in the shape of
    layers' inputs without their last axis: [texts, tokens], or the reverse for modules that
    are not `batch_first`. Inputs with one axis less, such as pooled ones, count whole.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    mask: torch.Tensor | None = None


def manifest_from_module(model: nn.Module, averaged: Collection[str] = ()) -> Manifest:
    """Every parameter and its rule, in one block; a tied one is there once.

    averaged: paths of modules whose parameters are averaged, whatever they are. Norms and
    embeddings always are.
    Raises UnknownTensor, naming parameter and module, for one that no rule covers.
    """
    if isinstance(model, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
        raise UnknownTensor(
            f"a {type(model).__name__} alone has no names for its parameters",
            hint="make it a part of a module of your own",
        )
    rest = {name: tuple(each.shape) for name, each in model.named_parameters()}
    groups: list[Group] = []
    means: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        own = {n: rest.pop(n) for n in _names(path, module) if n in rest}
        if path in averaged or isinstance(module, _AVERAGED):
            means |= own
        elif isinstance(module, nn.MultiheadAttention):
            groups += _attention(path, module, _is_self(model, path), own)
            means |= {n: s for n, s in own.items() if n.endswith((".bias_k", ".bias_v"))}
        elif isinstance(module, nn.Linear) and f"{path}.weight" in own:
            groups.append(_group(path, [_linear(path, module)], module.in_features))
        elif isinstance(module, nn.Conv2d) and own:
            groups.append(_convolution(path, module))
        elif isinstance(module, nn.Linear):
            means |= own  # the bias of a layer whose weight is another's
        elif own:
            raise UnknownTensor(
                f"no rule for the parameter '{min(own)}' of the module '{path}', a "
                f"{type(module).__name__}",
                hint="name the module in `averaged` to average it",
            )
    block = Block(
        name="model",
        module="",
        groups=tuple(groups),
        means=tuple(Mean(name=name, shape=shape) for name, shape in sorted(means.items())),
    )
    return Manifest(architecture=type(model).__name__, blocks=(block,))


def module_evidence(
    model: nn.Module, base: Mapping[str, torch.Tensor], block: Block, passes: Iterable[Pass]
) -> BlockEvidence:
    """What an owner knows of its model; it stays with the owner.

    model: the owner's, which is put into evaluation mode.   base: the common start, by name.
    block: of the manifest.   passes: over the owner's examples.
    Raises CheckpointInvalid unless every layer is called once in a pass, with inputs that fit, and
    if the base lacks a parameter.
    """
    own = dict(model.named_parameters())
    for name, shape in block.shapes.items():
        if name not in base or tuple(base[name].shape) != shape:
            raise CheckpointInvalid(f"the base has no '{name}' of the shape {list(shape)}")
    device = next(iter(own.values())).device
    grams = {group.name: Gram(group, "float64", device) for group in block.groups}
    tokens = 0
    model.eval()
    with _opened(model, block.groups), watched(model, block.groups) as inputs:
        for number, each in enumerate(passes):
            with torch.no_grad():
                model(*each.args, **each.kwargs)
            mask = {} if each.mask is None else {"attention_mask": each.mask}
            seen = inputs.rows(Batch((number,), mask))
            for name, rows in seen.items():
                grams[name].add(rows)
            tokens += max((rows.count for rows in seen.values()), default=0)
    return BlockEvidence(
        base={name: _array(base[name]) for name in block.shapes},
        own={name: _array(own[name]) for name in block.shapes},
        tokens=tokens,
        grams={name: GramEvidence(gram.total(), gram.count) for name, gram in grams.items()},
    )


def _array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().double().cpu().numpy())


def _names(path: str, module: nn.Module) -> list[str]:
    """Of the parameters that are the module's own, and not a part's."""
    if isinstance(module, nn.MultiheadAttention):
        return [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
    own = module.named_parameters(recurse=False)
    return [f"{path}.{name}" if path else name for name, _ in own]


def _group(name: str, layers: Sequence[Linear], inputs: int, parallel: bool = False) -> Group:
    return Group(name=name, inputs=inputs, rows="any", layers=tuple(layers), parallel=parallel)


def _linear(path: str, module: nn.Linear, **changes: Any) -> Linear:
    return Linear(name=path, outputs=module.out_features, bias=module.bias is not None, **changes)


def _convolution(path: str, module: nn.Conv2d) -> Group:
    plain = module.stride == module.kernel_size and set(module.padding) | {0} == {0}
    if not plain or module.groups != 1 or set(module.dilation) != {1}:
        raise UnknownTensor(
            f"no rule for the convolution '{path}': its windows overlap, or it has gaps, padding "
            "or groups",
            hint="name the module in `averaged` to average it",
        )
    shape = tuple(module.weight.shape)
    bias = f"{path}.bias" if module.bias is not None else ""
    inputs = module.weight[0].numel()
    stored = Stored(weight=f"{path}.weight", bias=bias, shape=shape, inputs=inputs)
    layer = Linear(name=path, outputs=shape[0], bias=bool(bias), stored=stored)
    return Group(name=path, inputs=inputs, rows="unfolded-patches", layers=(layer,))


def _is_self(model: nn.Module, path: str) -> bool:
    """Whether an attention gets queries, keys and values from one tensor, for all we know."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    layers = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
    return isinstance(owner, layers) and name == "self_attn"


def _attention(
    path: str, module: nn.MultiheadAttention, of_itself: bool, own: Collection[str]
) -> Iterator[Group]:
    width = module.embed_dim
    prefix = f"{path}." if path else ""
    if module.in_proj_weight is None:
        raise UnknownTensor(
            f"no rule for the attention '{path}', whose keys or values have a width of their own",
            hint="name the module in `averaged` to average it",
        )
    bias = f"{prefix}in_proj_bias" if f"{prefix}in_proj_bias" in own else ""

    def part(name: str, start: int, outputs: int, module: str) -> Linear:
        stored = Stored(
            weight=f"{prefix}in_proj_weight",
            bias=bias,
            shape=(3 * width, width),
            inputs=width,
            start=start,
        )
        return Linear(
            name=name, outputs=outputs, bias=bool(bias), stored=stored, module=prefix + module
        )

    if of_itself:
        yield _group(
            f"{prefix}in_proj", [part(f"{prefix}in_proj", 0, 3 * width, _INPUTS[0])], width
        )
    else:
        for place, stand_in in enumerate(_INPUTS):
            name = f"{prefix}in_proj.{stand_in.partition('_')[0]}"
            layer = part(name, place * width, width, stand_in)
            yield _group(name, [layer], width, parallel=place > 0)
    out = f"{prefix}out_proj"
    yield _group(out, [_linear(out, module.out_proj)], module.out_proj.in_features)


@contextmanager
def _opened(model: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Attentions of the model run in steps that hooks see, until the block ends."""
    of_itself = {group.name.removesuffix("in_proj") for group in groups}
    with ExitStack() as patches:
        before = torch.backends.mha.get_fastpath_enabled()
        patches.callback(torch.backends.mha.set_fastpath_enabled, before)
        torch.backends.mha.set_fastpath_enabled(False)
        for path, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                patches.enter_context(_stepwise(path, module, f"{path}." in of_itself))
        yield


@contextmanager
def _stepwise(path: str, module: nn.MultiheadAttention, of_itself: bool) -> Iterator[None]:
    """The attention calls stand-ins with its inputs, and its `out_proj` as a module."""
    plain = module.forward
    out = module.out_proj
    # Multiplied by ones and zeros numbers stay as they are.
    unit = nn.Linear(out.in_features, out.in_features, bias=False)
    nn.init.eye_(unit.weight)
    unit.to(out.weight.device, out.weight.dtype).requires_grad_(False)

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if of_itself and not (query is key is value):
            raise CheckpointInvalid(f"the attention '{path}' is called with different inputs")
        given = (query, key, value)
        seen = [module.get_submodule(n)(x) for n, x in zip(_INPUTS, given, strict=True)]
        module._modules["out_proj"] = unit
        try:
            context, weights = plain(*seen, *args, **kwargs)
        finally:
            module._modules["out_proj"] = out
        return out(context), weights

    try:
        for name in _INPUTS:
            module.add_module(name, nn.Identity())
        module.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        del module.forward
        for name in _INPUTS:
            del module._modules[name]
