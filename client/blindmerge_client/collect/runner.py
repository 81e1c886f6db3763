"""Runs a model one block at a time.

The hidden states after the last layer are kept on disk, so that the whole job costs one forward
pass, and one more, at most, for each peek into a layer that is merged in parts; memory holds one
block's statistics and one batch. The layers before are passed over; what the model computes
around them (embeddings, masks, rotary tables) runs as usual, which keeps this independent of
the architecture.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from torch import nn

from blindmerge.files import explaining
from blindmerge_client.batches import Batch
from blindmerge_client.collect.states import States, load_states, save_states
from blindmerge_client.progress import Watch, unwatched

__all__ = ["BlockRunner"]


class _EndOfPass(Exception):
    """Leaves the model's forward early; no error."""


class BlockRunner:
    """A model, fixed batches, and where its hidden states are kept.

    modules: paths of the transformer layers in forward order, each called once per pass and
    returning its hidden states [rows, tokens, width], or a tuple with them. Layers in one list
    make a stack; a second stack, a decoder, also gets what the first returned.
    batches: what `run` goes over.
    folder: private to this runner; holds hidden states of the owner's texts, float32.
    repeated: layers that are called several times in a row; what they return last counts.
    watch: shows how far a pass over all batches is.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[str],
        batches: Sequence[Batch],
        folder: Path,
        repeated: Collection[str] = (),
        watch: Watch = unwatched,
    ) -> None:
        self.model = model.eval()
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._layers = [model.get_submodule(path) for path in modules]
        self._modules = tuple(modules)
        self._batches = tuple(batches)
        self._folder = folder
        self._repeated = frozenset(repeated)
        self._watch = watch

    def run(self, module: str) -> Iterator[Batch]:
        """Runs the block that ends with `module`; the empty path is the head.

        Yields each batch after its pass, in which hooks on the block's layers have fired. The
        hidden states after the block are kept for the next one, once all batches are drawn.
        """
        index = self._index(module)
        self._reach(index)
        if index == len(self._modules):
            yield from self._passes(index, nullcontext)
            return
        # No fsync as for results: after a power cut the states are simply computed again.
        partial = self._folder / "hidden.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with explaining(partial):
            partial.mkdir(mode=0o700)
            states: list[States] = []
            for number, batch in enumerate(self._passes(index, self._ending(index, states))):
                save_states(partial / str(number), states[-1])
                states.clear()
                yield batch
        shutil.rmtree(self._boundary(index), ignore_errors=True)
        partial.rename(self._boundary(index))
        # The boundary before stays: a repeated request for this block starts from it. Later ones
        # go too, or requests in descending order would fill the disk.
        for other in set(range(len(self._layers))) - {index, *self._needed(index)}:
            shutil.rmtree(self._boundary(other), ignore_errors=True)

    def peek(self, module: str, layers: Sequence[str]) -> Iterator[Batch]:
        """The same for a block that is not merged yet: nothing that comes after it is kept.

        layers: paths of modules in the block; a pass ends as soon as all of them are called, one
            that is there twice two times.
        """
        index = self._index(module)
        self._reach(index)
        awaited = Counter(self.model.get_submodule(layer) for layer in layers)
        yield from self._passes(index, lambda: _ending_before(awaited))

    def _index(self, module: str) -> int:
        return self._modules.index(module) if module else len(self._modules)

    def _needed(self, index: int) -> list[int]:
        """The layers whose hidden states number `index` is computed from.

        They are the one before it, and the last ones of the stacks before its own.
        """
        lists = [path.rpartition(".")[0] for path in self._modules]
        return [n for n in range(index) if n == index - 1 or lists[n] != lists[n + 1]]

    def _reach(self, index: int) -> None:
        """Makes the hidden states before a block, if they are not there."""
        for needed in self._needed(index):
            if not self._boundary(needed).is_dir():
                for _ in self.run(self._modules[needed]):
                    pass

    def _ending(
        self, index: int, states: list[States]
    ) -> Callable[[], AbstractContextManager[None]]:
        """What ends a pass after layer number `index` and puts its output last into `states`."""
        if self._modules[index] in self._repeated:
            return lambda: _keeping(self._layers[index], states)
        return lambda: _ending_after(self._layers[index], states)

    def _boundary(self, index: int) -> Path:
        return self._folder / f"hidden-{index}"

    def _passes(
        self, index: int, ending: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[Batch]:
        """Each batch after its pass through the block.   ending: what ends a pass early."""
        for number, batch in enumerate(self._watch(self._batches)):
            with torch.inference_mode(), ExitStack() as patches:
                start = 0
                for end in self._needed(index):
                    saved = load_states(self._boundary(end) / str(number), self._device)
                    for layer in self._layers[start : end + 1]:
                        patches.enter_context(_returning(layer, saved))
                    start = end + 1
                patches.enter_context(ending())
                with suppress(_EndOfPass):
                    self.model(**{n: each.to(self._device) for n, each in batch.inputs.items()})
            yield batch


@contextmanager
def _returning(layer: nn.Module, states: States) -> Iterator[None]:
    """`layer` returns `states` without computing anything."""
    layer.forward = lambda *_args, **_kwargs: states
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _ending_after(layer: nn.Module, ended: list[States]) -> Iterator[None]:
    """The model's forward ends after `layer`, whose output is put into `ended`."""

    def stop(_module: nn.Module, _args: object, output: States) -> None:
        ended.append(output)
        raise _EndOfPass

    handle = layer.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _keeping(layer: nn.Module, returned: list[States]) -> Iterator[None]:
    """Every output of `layer` is put into `returned`; the pass goes on to its end."""

    def keep(_module: nn.Module, _args: object, output: States) -> None:
        returned[:] = [output]

    handle = layer.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _ending_before(calls: Counter[nn.Module]) -> Iterator[None]:
    """The model's forward ends with the last of these calls, in whatever order they come."""
    awaited = Counter(calls)

    def stop(layer: nn.Module, _args: object) -> None:
        awaited[layer] -= 1
        if not +awaited:
            raise _EndOfPass

    handles = [layer.register_forward_pre_hook(stop) for layer in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
