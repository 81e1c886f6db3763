"""Block by block is the same as all at once, whatever happens in between."""

import errno
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, ResourceMissing
from blindmerge.manifest import Block, Group
from blindmerge_client.batches import Batch, batches
from blindmerge_client.collect import runner as runner_module
from blindmerge_client.collect.runner import BlockRunner
from blindmerge_client.collect.states import States, load_states, save_states
from blindmerge_client.models import load_model, load_tokenizer
from support.jobs import LABELS, noisy
from support.pico import Architecture, pico_encoder, pico_examples

# MPNet's layers return tuples, those of the others tensors.
ARCHITECTURES: tuple[Architecture, ...] = ("bert", "roberta", "distilbert", "mpnet")


class Case:
    def __init__(self, folder: Path, architecture: Architecture) -> None:
        base = pico_encoder(folder / "base", architecture, labels=LABELS)
        self.model = load_model(noisy(base, folder / "own", seed=1))
        self.blocks = [block for block in Checkpoint(base).manifest.blocks if block.groups]
        self.modules = Checkpoint(base).manifest.modules
        self.batches = batches(load_tokenizer(base), pico_examples(7).texts, 32, 3)
        self.folder = folder / "states"

    def runner(self, model: nn.Module | None = None) -> BlockRunner:
        return BlockRunner(model or self.model, self.modules, self.batches, self.folder)

    def run(self, runner: BlockRunner, module: str) -> list[torch.Tensor]:
        """The inputs of every linear layer that is reached, in order, of all batches."""
        return seen(self.model, lambda: drain(runner.run(module)))

    def peek(self, runner: BlockRunner, block: Block) -> list[torch.Tensor]:
        """The inputs of every linear layer that computes its output in a peek."""
        return seen(self.model, lambda: drain(runner.peek(block.module, names(block.groups))))

    @property
    def folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))

    def full(self) -> list[list[torch.Tensor]]:
        """The hidden states after every layer, by batch, of a full forward pass."""
        with torch.no_grad():
            return [
                [batch_states.detach() for batch_states in states(self.model, batch)]
                for batch in self.batches
            ]


def hidden(path: Path) -> torch.Tensor:
    """The hidden states in a file of a runner."""
    saved = load_states(path, torch.device("cpu"))
    found = saved[0] if isinstance(saved, tuple) else saved
    assert found is not None
    return found


def names(groups: Iterable[Group]) -> list[str]:
    return [layer.name for group in groups for layer in group.layers]


def drain(passes: Iterable[Batch]) -> None:
    for _ in passes:
        pass


def states(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
    # hidden_states[0] is the embeddings' output.
    found: tuple[torch.Tensor, ...] = model(**batch.inputs, output_hidden_states=True).hidden_states
    return found[1:]


def seen(model: nn.Module, work: Callable[[], object]) -> list[torch.Tensor]:
    inputs: list[torch.Tensor] = []

    def keep(_module: nn.Module, args: tuple[torch.Tensor, ...], _output: object) -> None:
        inputs.append(args[0].clone())

    handles = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        work()
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) > 0 and all(
        torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )


@pytest.fixture(params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, request.param)


@pytest.fixture
def bert(tmp_path: Path) -> Case:
    return Case(tmp_path, "bert")


def test_hidden_states_are_those_of_a_full_pass_bit_for_bit(case: Case) -> None:
    full = case.full()
    runner = case.runner()
    for index, module in enumerate(case.modules):
        drain(runner.run(module))
        for number, expected in enumerate(full):
            saved = hidden(case.folder / f"hidden-{index}" / str(number))
            assert saved.dtype == torch.float32
            assert torch.equal(saved, expected[index])


def test_every_layer_runs_once_with_the_inputs_of_a_full_pass(case: Case) -> None:
    runner = case.runner()

    def full_pass() -> None:
        with torch.no_grad():
            for batch in case.batches:
                case.model(**batch.inputs)

    def key(tensor: torch.Tensor) -> bytes:
        return tensor.numpy().tobytes()

    whole = seen(case.model, full_pass)
    parts = [tensor for module in [*case.modules, ""] for tensor in case.run(runner, module)]
    assert len(parts) == len(whole)
    assert sorted(map(key, parts)) == sorted(map(key, whole))


def test_each_batch_is_yielded_after_it_ran(bert: Case) -> None:
    order: list[object] = []

    def mark(_module: nn.Module, _args: object) -> None:
        order.append("runs")

    handle = bert.model.get_submodule(bert.modules[0]).register_forward_pre_hook(mark)
    for batch in bert.runner().run(bert.modules[0]):
        order.append(batch)
    handle.remove()
    assert order == [item for batch in bert.batches for item in ("runs", batch)]


def test_peeking_keeps_only_what_comes_before(case: Case) -> None:
    runner = case.runner()
    for index, block in enumerate(case.blocks):
        case.peek(runner, block)
        assert case.folders == [f"hidden-{n}" for n in range(max(0, index - 2), index)]


def test_peeking_ends_with_the_call_of_the_last_layer(case: Case) -> None:
    ordinary, curious = case.runner(), case.runner()
    for block in case.blocks:
        expected = case.run(ordinary, block.module)
        layers = len(names(block.groups))
        # The last layer is called, which hooks before it see, but does not compute.
        wanted = [x for n, x in enumerate(expected) if n % layers < layers - 1]
        assert same(case.peek(curious, block), wanted)
        first = case.peek(curious, block.model_copy(update={"groups": block.groups[:1]}))
        assert len(first) == len(case.batches) * (len(block.groups[0].layers) - 1)


def test_after_a_peek_the_block_runs_with_its_new_weights(bert: Case) -> None:
    runner = bert.runner()
    bert.peek(runner, bert.blocks[1])
    with torch.no_grad():
        for parameter in bert.model.get_submodule(bert.modules[1]).parameters():
            parameter.mul_(1.5)
    bert.peek(runner, bert.blocks[-1])
    for number, expected in enumerate(bert.full()):
        assert torch.equal(hidden(bert.folder / "hidden-1" / str(number)), expected[1])


def test_asking_again_gives_the_same(case: Case) -> None:
    runner = case.runner()
    for module in [*case.modules, ""]:
        assert same(case.run(runner, module), case.run(runner, module))


def forget(case: Case) -> None:
    for name in case.folders:
        shutil.rmtree(case.folder / name)


def leave_half(case: Case) -> None:
    half = case.folder / "hidden.partial"
    half.mkdir()
    save_states(half / "0", torch.zeros(3, 4, 16))
    (half / "junk").write_text("junk")


def lose_the_last(case: Case) -> None:
    shutil.rmtree(case.folder / case.folders[-1])
    leave_half(case)


@pytest.mark.parametrize("accident", [lambda _: None, forget, leave_half, lose_the_last])
def test_a_new_runner_goes_on_where_the_old_one_stopped(
    case: Case, accident: Callable[[Case], None]
) -> None:
    old = case.runner()
    expected = [case.run(old, module) for module in [*case.modules, ""]]
    forget(case)
    half = case.runner()
    for module in case.modules:
        case.run(half, module)
    accident(case)
    new = case.runner()
    after = case.run(new, "")
    # What was lost is computed again, from the last boundary that is left or from the start.
    assert same(after[-len(expected[-1]) :], expected[-1])
    case.run(new, case.modules[-1])
    assert case.folders == ["hidden-0", "hidden-1"]


def test_the_layers_before_are_not_computed_again(case: Case) -> None:
    case.run(case.runner(), case.modules[-1])
    head = case.run(case.runner(), "")
    # Two linear layers in the head, called once per batch.
    assert len(head) == 2 * len(case.batches)


def test_a_run_that_dies_leaves_the_boundary_before(
    bert: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = bert.runner()
    drain(runner.run(bert.modules[0]))

    def die(path: Path, states: States) -> None:
        if path.name == "1":
            raise OSError(errno.ENOSPC, "No space left on device")
        save_states(path, states)

    monkeypatch.setattr(runner_module, "save_states", die)
    with pytest.raises(ResourceMissing, match="disk is full"):
        drain(runner.run(bert.modules[1]))
    monkeypatch.undo()
    assert bert.folders == ["hidden-0", "hidden.partial"]
    for module in bert.model.modules():
        assert not module._forward_hooks
        assert "forward" not in vars(module)
    drain(runner.run(bert.modules[1]))
    assert torch.equal(hidden(bert.folder / "hidden-1" / "1"), bert.full()[1][1])


class Chain(nn.Module):
    """Many layers, each adding one; `answer` makes what a layer returns of its sum."""

    def __init__(self, count: int, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_AddOne(answer) for _ in range(count))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = input_ids.float()[..., None]
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class _AddOne(nn.Module):
    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.answer(hidden + 1)


def chain(folder: Path, answer: Callable[[torch.Tensor], Any] = lambda hidden: hidden) -> Any:
    modules = [f"layers.{index}" for index in range(7)]
    batch = Batch((0,), {"input_ids": torch.zeros((1, 2), dtype=torch.int64)})
    return BlockRunner(Chain(7, answer), modules, [batch], folder), modules


@pytest.mark.parametrize("order", [range(7), range(6, -1, -1), (3, 0, 6, 1, 5, 2, 4, 4, 0, 6)])
def test_few_hidden_states_stay_on_disk_in_whatever_order_blocks_are_asked(
    tmp_path: Path, order: Any
) -> None:
    runner, modules = chain(tmp_path / "states")
    for index in order:
        drain(runner.run(modules[index]))
        folders = sorted(path.name for path in (tmp_path / "states").iterdir())
        assert set(folders) <= {f"hidden-{index}", f"hidden-{index - 1}"}
        saved = hidden(tmp_path / "states" / f"hidden-{index}" / "0")
        assert torch.equal(saved, torch.full((1, 2, 1), index + 1.0))


@pytest.mark.parametrize("returned", [{"hidden": 1}, (torch.zeros(1), "attention"), None])
def test_a_layer_that_returns_more_than_tensors_is_refused(returned: Any, tmp_path: Path) -> None:
    runner, modules = chain(tmp_path / "states", lambda _: returned)
    with pytest.raises(CheckpointInvalid, match=r"a layer returns a (dict|str|NoneType)"):
        drain(runner.run(modules[0]))


def test_tuples_come_back_as_they_were(tmp_path: Path) -> None:
    some, other = torch.arange(6.0).view(2, 3).T, torch.tensor([True])
    for number, states in enumerate([(some,), (some, None, other), (None, some)]):
        save_states(tmp_path / str(number), states)
        loaded = load_states(tmp_path / str(number), torch.device("cpu"))
        assert len(loaded) == len(states)
        for found, expected in zip(loaded, states, strict=True):
            assert (found is None) == (expected is None)
            assert found is None or (expected is not None and torch.equal(found, expected))


def test_nobody_else_may_look_into_the_folders(bert: Case) -> None:
    drain(bert.runner().run(bert.modules[-1]))
    for folder in (bert.folder, *bert.folder.iterdir()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
