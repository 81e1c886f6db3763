"""What goes into linear layers while a model runs, seen by hooks.

Padding is no row; special tokens and every part of a word are, also in the head of a tagger,
whose loss sees first tokens of words alone. Inputs may be passed by position or keyword.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Group, Rows
from blindmerge_client.batches import IGNORED, Batch
from blindmerge_client.collect.experts import Routes, chosen, routed

__all__ = ["Inputs", "Part", "Seen", "awaited", "watched"]

_Call: TypeAlias = tuple[Any, ...]
"""The arguments of one call of a module, in their order."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows X [n, inputs] in the model's dtype, without ones for a bias.

    scale: what X~ is multiplied by, ones included, so that X~^T X~ is a weighted sum.
    """

    rows: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a group got in a pass.

    parts: its rows, in their order.   count: how many there are, what a mean divides by.
    """

    parts: Sequence[Part]
    count: int


class Inputs:
    """The inputs of the layers of some groups, from pass to pass."""

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self._model = model
        self._groups = tuple(groups)
        self._calls: dict[str, list[_Call]] = {}  # by path of a module, in the pass that runs
        self.routes: Routes = {}

    def see(self, path: str, arguments: _Call) -> None:
        """The module at `path` is called with `arguments`."""
        self._calls.setdefault(path, []).append(arguments)

    def rows(self, batch: Batch, routes: Routes | None = None) -> dict[str, Seen]:
        """What every group got, from the pass over `batch` that just ended.

        routes: where another model sent the tokens, so that rows of both are of the same tokens;
        where this one did, if left out. They stay in `routes`.
        Raises CheckpointInvalid unless every layer was called as often as its rule says, those
        of a group on one input, with a shape that fits the batch.
        """
        self.routes = self._routed() if routes is None else routes
        seen = {group.name: self._seen(group, batch) for group in self._groups}
        self._calls = {}
        return seen

    def _routed(self) -> Routes:
        """Where the pass sent the tokens."""
        paths = {group.layers[0].path for group in self._groups if group.expert is not None}
        return {path: chosen(call) for path in sorted(paths) for call in self._calls.get(path, ())}

    def _seen(self, group: Group, batch: Batch) -> Seen:
        inputs = self._inputs(group)
        if group.expert is None:
            return _KINDS[group.rows](group, inputs, batch)
        path = group.layers[0].path
        mask = batch.inputs["attention_mask"].bool().flatten()
        mixture = self._model.get_submodule(path)
        rows = routed(group, mixture, inputs[0], self.routes[path], mask)
        return Seen([Part(rows)], len(rows))

    def _inputs(self, group: Group) -> list[torch.Tensor]:
        """The common input of the layers of a group, call by call."""
        calls = []
        for layer in group.layers:
            calls.append([arguments[0] for arguments in self._calls.get(layer.path, ())])
            _check_count(group, layer.name, len(calls[-1]))
        first, *others = calls
        for each in others:
            if len(each) != len(first) or not all(map(_same, first, each)):
                raise CheckpointInvalid(
                    f"the layers of '{group.name}' do not share one input",
                    hint="the model's code differs from its architecture's rules",
                )
        return first


def _check_count(group: Group, layer: str, calls: int) -> None:
    expected = _CALLS.get(group.rows, 1)
    if calls == 0:
        raise CheckpointInvalid(f"the layer '{layer}' was not called in a pass")
    if calls != expected and not group.repeated:
        raise CheckpointInvalid(
            f"the layer '{layer}' was called {calls} times in one pass, but its rule is for "
            f"{expected}",
            hint="the model's code differs from its architecture's rules",
        )


def awaited(groups: Sequence[Group]) -> list[str]:
    """Paths of the modules that have to be called before all inputs are seen, as often as that."""
    counts: Counter[str] = Counter()
    for group in groups:
        for layer in group.layers:
            counts[layer.path] = max(counts[layer.path], _CALLS.get(group.rows, 1))
    return list(counts.elements())


@contextmanager
def watched(model: nn.Module, groups: Sequence[Group]) -> Iterator[Inputs]:
    """Hooks on the layers of `groups`, which go when the block ends."""
    inputs = Inputs(model, groups)
    handles = []
    try:
        for path in dict.fromkeys(awaited(groups)):
            hook = _hook(path, inputs)
            handles.append(
                model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
            )
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _hook(path: str, inputs: Inputs) -> Any:
    def see(_module: nn.Module, args: _Call, kwargs: dict[str, Any]) -> None:
        inputs.see(path, (*args, *kwargs.values()))

    return see


def _tokens(group: Group, calls: Sequence[torch.Tensor], batch: Batch) -> Seen:
    mask = batch.inputs["attention_mask"].bool()
    return _parts([text for inputs in calls for text in _texts(group, inputs, mask)])


def _target_tokens(group: Group, calls: Sequence[torch.Tensor], batch: Batch) -> Seen:
    # The decoder gets each target one place later, so a place counts where there is a target.
    (inputs,) = calls
    return _parts(_texts(group, inputs, batch.inputs["labels"] != IGNORED))


def _parts(rows: Sequence[torch.Tensor]) -> Seen:
    return Seen([Part(each) for each in rows], sum(map(len, rows)))


def _texts(group: Group, inputs: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """The real tokens, text by text: not copied where they stand together, as they usually do."""
    texts = _by_text(group, inputs, mask)
    starts, lengths = mask.int().argmax(dim=1), mask.sum(dim=1)
    places = torch.arange(mask.shape[1], device=mask.device) - starts[:, None]
    together = (places >= 0) & (places < lengths[:, None])
    if not torch.equal(together, mask):
        return [texts[mask]]
    spans = zip(texts, starts.tolist(), lengths.tolist(), strict=True)
    return [text[start : start + length] for text, start, length in spans]


def _masked(group: Group, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The real tokens, in one tensor."""
    return _by_text(group, inputs, mask)[mask]


def _by_text(group: Group, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[texts, tokens, inputs], which may come with the first two as one."""
    if inputs.shape[:-1] not in (mask.shape, (mask.numel(),)):
        raise _unfit(group, inputs)
    return inputs.reshape(*mask.shape, inputs.shape[-1])


def _sequences(group: Group, calls: Sequence[torch.Tensor], batch: Batch) -> Seen:
    (inputs,) = calls
    if inputs.shape[:-1] != (len(batch.indices),):
        raise _unfit(group, inputs)
    return Seen([Part(inputs)], len(inputs))


def _last_tokens(group: Group, calls: Sequence[torch.Tensor], batch: Batch) -> Seen:
    (inputs,) = calls
    mask = batch.inputs["attention_mask"]
    if inputs.shape[:-1] != mask.shape:
        raise _unfit(group, inputs)
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return Seen([Part(inputs[torch.arange(len(last)), last])], len(last))


def _tokens_and_positions(group: Group, calls: Sequence[torch.Tensor], batch: Batch) -> Seen:
    inputs, table = calls
    tokens = _masked(group, inputs, batch.inputs["attention_mask"].bool())
    if table.shape[:-1] != (1, table.shape[-2]):
        raise _unfit(group, table)
    # Over all passes the table weighs as much as the tokens, however many texts share one pass.
    scale = math.sqrt(len(tokens) / table.shape[1])
    return Seen([Part(tokens), Part(table[0], scale)], len(tokens))


def _patches(group: Group, calls: Sequence[torch.Tensor], batch: Batch) -> Seen:
    (inputs,) = calls
    if inputs.ndim != 3 or len(inputs) != len(batch.indices):
        raise _unfit(group, inputs)
    rows = inputs.flatten(0, 1)
    return Seen([Part(rows)], len(rows))


def _any(group: Group, calls: Sequence[torch.Tensor], batch: Batch) -> Seen:
    (inputs,) = calls
    mask = batch.inputs.get("attention_mask")
    if mask is None or inputs.ndim < mask.ndim + 1:
        rows = inputs.reshape(-1, inputs.shape[-1])
    else:
        rows = _masked(group, inputs, mask.bool())
    return Seen([Part(rows)], len(rows))


def _unfolded_patches(group: Group, calls: Sequence[torch.Tensor], _batch: Batch) -> Seen:
    (images,) = calls
    stored = group.layers[0].stored
    if stored is None or images.ndim != 4:
        raise _unfit(group, images)
    window = stored.shape[2:]
    columns = nn.functional.unfold(images, window, stride=window)
    rows = columns.transpose(1, 2).flatten(0, 1)
    return Seen([Part(rows)], len(rows))


_KINDS: Mapping[Rows, Callable[[Group, Sequence[torch.Tensor], Batch], Seen]] = {
    "tokens": _tokens,
    "target-tokens": _target_tokens,
    "sequences": _sequences,
    "last-tokens": _last_tokens,
    "tokens-and-positions": _tokens_and_positions,
    "patches": _patches,
    "unfolded-patches": _unfolded_patches,
    "any": _any,
}
_CALLS: Mapping[Rows, int] = {"tokens-and-positions": 2}
"""How often a layer is called in a pass, if not once."""


def _unfit(group: Group, inputs: torch.Tensor) -> CheckpointInvalid:
    return CheckpointInvalid(
        f"the input of '{group.name}' has the shape {list(inputs.shape)}, "
        f"which does not fit rows of {group.rows}"
    )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
