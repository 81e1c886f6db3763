"""The true diagonal Fisher information of a model, example by example.

    F = mean over examples x of sum_y p(y|x) (d log p(y|x) / d theta)^2     (Matena and Raffel 2022)

What p(y|x) is depends on the task: one of the labels, a Bernoulli variable for each label, or a
number with the model's output as mean and variance 1.

The square is taken of the gradient of *one* example. Gradients per example come from hooks on
the modules that own parameters: linear layers, LayerNorms, RMSNorms and embeddings.

Of words, y is a label for each of them, and labels are independent given x. Let J_w be the
gradients [labels, parameters] of the logits at word w, and C_w = diag(p_w) - p_w p_w^T. A
score (e_y - p_w)^T J_w has mean zero, so mixed terms of two words vanish:

    F_x = diag of sum_w J_w^T C_w J_w,     C_w = R_w R_w^T,     R_w: [labels, labels - 1]

A text as a whole is one such w, and costs a backward pass per column of its root R. For many
words each gets a root of its own, R_w Q_w with Q_w orthogonal and random (Haar), and column
c of all of them is differentiated at once:

    estimate_x = sum_c (sum_w J_w^T R_w Q_w e_c)^2

Its mean is F_x, since Q_w is independent from word to word and has mean zero. With s_w what
word w alone adds to F_x, and L labels, its variance is

    2 / (L - 1) * ((sum_w s_w)^2 - sum_w s_w^2)

for each parameter: at most L - 1 passes, however long the text, exact for one word, and no
larger where the model is sure of its labels. Labels drawn from the model would be unbiased
too, but a rare label has a large score. Q_w comes from a hash of the example: the same each time.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from blindmerge.errors import CheckpointInvalid
from blindmerge.files import replacing, save_array
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client.batches import Batch
from blindmerge_client.progress import Watch, unwatched

__all__ = ["collect_fisher", "read_fisher"]

Totals = Mapping[str, np.memmap[Any, np.dtype[np.float64]]]
Roots = Callable[[torch.Tensor], torch.Tensor]
PerExample = Callable[[torch.Tensor, torch.Tensor], None]


def collect_fisher(
    model: nn.Module,
    task: Task,
    shapes: Mapping[str, tuple[int, ...]],
    batches: Sequence[Batch],
    folder: Path,
    watch: Watch = unwatched,
) -> None:
    """Writes F of the tensors in `shapes` into `folder`, float64, one file each.

    The sums live in memory-mapped files, so memory holds one batch. An existing `folder` is
    whole and stays.   watch: shows how many batches are done.
    Raises CheckpointInvalid for a task, or a module with such a tensor, that has no rule.
    """
    if task not in _ROOTS:
        raise CheckpointInvalid(f"no Fisher rule for the task '{task}'", hint="use another method")
    if folder.is_dir():
        return
    with replacing(folder) as temporary:
        temporary.mkdir(mode=0o700)
        totals = {name: _zeros(temporary / f"{name}.npy", shape) for name, shape in shapes.items()}
        _accumulate(model.eval(), _ROOTS[task], watch(batches), totals)
        examples = sum(len(batch.indices) for batch in batches)
        for total in totals.values():
            total /= examples
            total.flush()


def _zeros(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float64]]:
    # Not a sparse file, as numpy would make it: where the disk is full, writing to a hole of a
    # mapped file kills the process.
    save_array(path, np.zeros(shape))
    return np.lib.format.open_memmap(path, mode="r+")


def read_fisher(folder: Path, names: Sequence[str]) -> dict[str, Array]:
    """F of the named tensors, as `collect_fisher` wrote it."""
    return {name: np.load(folder / f"{name}.npy") for name in names}


class _Now:
    """The batch in the model: how many examples it has, and which modules it has been in."""

    def __init__(self) -> None:
        self.examples = 0
        self.called: set[str] = set()


def _accumulate(model: nn.Module, roots: Roots, batches: Iterable[Batch], totals: Totals) -> None:
    now = _Now()
    with ExitStack() as hooks:
        for parameter in model.parameters():
            hooks.callback(parameter.requires_grad_, parameter.requires_grad)
        model.requires_grad_(False)
        for name, module in model.named_modules():
            own = [f"{name}.{each}" for each, _ in module.named_parameters(recurse=False)]
            if any(each in totals for each in own):
                hook = _hook(name, module, totals, now)
            elif isinstance(module, nn.Embedding):
                hook = _begin
            else:
                continue
            hooks.callback(module.register_forward_hook(hook).remove)
        device = next(model.parameters()).device
        for batch in batches:
            now.examples, now.called = len(batch.indices), set()
            logits = model(**{key: each.to(device) for key, each in batch.inputs.items()}).logits
            for direction in _directions(batch, logits, roots(logits.detach().double())):
                torch.autograd.backward((logits * direction).sum(), retain_graph=True)


def _begin(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    """Gradients end at what an embedding returns."""
    return output.detach().requires_grad_()


def _directions(batch: Batch, logits: torch.Tensor, roots: torch.Tensor) -> Sequence[torch.Tensor]:
    """What to differentiate in the space of the logits: a tensor of their shape per column."""
    if batch.words is not None:
        rotated = roots @ _rotations(batch, roots.shape[-1]).to(roots.device)
        begins = (batch.words >= 0).to(roots.device)
        roots = torch.where(begins[:, :, None, None], rotated, 0.0)
    return roots.to(logits.dtype).unbind(dim=-1)


def _of_one_label(logits: torch.Tensor) -> torch.Tensor:
    """R with R R^T = diag(p) - p p^T, [..., labels, labels - 1]: such is its rank."""
    p = torch.softmax(logits, dim=-1)
    covariance = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    values, vectors = torch.linalg.eigh(covariance)
    # Ascending: the first eigenvalue is 0, that of a shift of all logits.
    roots: torch.Tensor = vectors * values.clamp(min=0).sqrt()[..., None, :]
    return roots[..., 1:]


def _of_each_label(logits: torch.Tensor) -> torch.Tensor:
    """The scores of independent labels: R R^T = diag(p (1 - p)), [..., labels, labels]."""
    p = torch.sigmoid(logits)
    return torch.diag_embed((p * (1 - p)).sqrt())


def _of_a_number(logits: torch.Tensor) -> torch.Tensor:
    """The score of N(f, 1) has variance 1: R = I, [..., 1, 1]."""
    return torch.ones_like(logits)[..., None]


_ROOTS: Mapping[Task, Roots] = {
    "single-label": _of_one_label,
    "multi-label": _of_each_label,
    "regression": _of_a_number,
    "token-classification": _of_one_label,
}
"""A root R of the covariance of the score d log p(y|x) / d logits, by task; logits in float64."""


def _rotations(batch: Batch, size: int) -> torch.Tensor:
    """A random orthogonal matrix for every token, [examples, tokens, size, size].

    Those of an example follow from its tokens alone, not from the batch that it is in.
    """
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    normal = torch.ones(*ids.shape, size, size, dtype=torch.float64)
    for example, real, target in zip(ids, mask, normal, strict=True):
        digest = hashlib.sha256(example[real].numpy().tobytes()).digest()
        seed = int.from_bytes(digest[:8], "little", signed=True)
        generator = torch.Generator().manual_seed(seed)
        shape = (int(real.sum()), size, size)
        target[real] = torch.randn(shape, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    # LAPACK fixes signs by the matrix; with R's diagonal made positive, Q is uniform.
    rotations: torch.Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return rotations


def _hook(name: str, module: nn.Module, totals: Totals, now: _Now) -> Any:
    add = _rule(name, module, totals)

    def forward(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        if name in now.called:
            # Its gradient is a sum over calls, whose square is not the sum of their squares.
            raise CheckpointInvalid(f"no Fisher rule for '{name}', which is called repeatedly")
        now.called.add(name)
        inputs = args[0]
        if output.shape[0] == 1 != now.examples:
            # Position embeddings are looked up once for the whole batch; one copy per
            # example keeps the gradients of the examples apart.
            output = output.expand(now.examples, *output.shape[1:])
            inputs = inputs.expand(now.examples, *inputs.shape[1:])
        if isinstance(module, nn.Embedding):
            # Parameters are frozen while hooks take their gradients; the graph starts here.
            output = _begin(module, args, output)
        inputs = inputs.detach()
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: add(inputs, gradient)
        )
        return output

    return forward


def _rule(name: str, module: nn.Module, totals: Totals) -> PerExample:
    if isinstance(module, nn.Linear):
        return _linear(name, totals)
    if isinstance(module, Conv1D):
        return _conv1d(name, totals)
    if isinstance(module, nn.LayerNorm):
        return _layer_norm(name, module, totals)
    if type(module).__name__.endswith("RMSNorm"):
        return _rms_norm(name, module, totals)
    if isinstance(module, nn.Embedding) and not name.endswith("relative_attention_bias"):
        return _embedding(name, module, totals)
    # A table of relative positions is looked up once for all examples, which mixes them.
    raise CheckpointInvalid(f"no Fisher rule for '{name}', a {type(module).__name__}")


def _linear(name: str, totals: Totals) -> PerExample:
    def add(inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        if inputs.ndim == 2:
            inputs, gradient = inputs[:, None], gradient[:, None]
        per_example = torch.bmm(gradient.transpose(1, 2), inputs)
        _add_squares(totals, f"{name}.weight", per_example)
        _add_squares(totals, f"{name}.bias", gradient.sum(dim=1))

    return add


def _conv1d(name: str, totals: Totals) -> PerExample:
    def add(inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        _add_squares(totals, f"{name}.weight", torch.bmm(inputs.transpose(1, 2), gradient))
        _add_squares(totals, f"{name}.bias", gradient.sum(dim=1))

    return add


def _rms_norm(name: str, module: nn.Module, totals: Totals) -> PerExample:
    """Of w x / rms(x), or of (1 + w) x / rms(x), as Gemma has it: the derivative is the same."""
    weight: Any = module.weight
    eps: Any = getattr(module, "variance_epsilon", None) or module.eps

    def add(inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        normalised = nn.functional.rms_norm(inputs, list(weight.shape), eps=eps)
        # In attention there is a norm for every head.
        products = (gradient * normalised).flatten(1, -2)
        _add_squares(totals, f"{name}.weight", products.sum(dim=1))

    return add


def _layer_norm(name: str, module: nn.LayerNorm, totals: Totals) -> PerExample:
    def add(inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        shape = module.normalized_shape
        normalised = nn.functional.layer_norm(inputs, list(shape), eps=module.eps)
        _add_squares(totals, f"{name}.weight", (gradient * normalised).sum(dim=1))
        _add_squares(totals, f"{name}.bias", gradient.sum(dim=1))

    return add


def _embedding(name: str, module: nn.Embedding, totals: Totals) -> PerExample:
    total = totals[f"{name}.weight"]
    scale = float(getattr(module, "embed_scale", 1.0))  # Gemma multiplies what it looks up

    def add(ids: torch.Tensor, gradient: torch.Tensor) -> None:
        for example_ids, rows in zip(ids, gradient, strict=True):
            found, place = example_ids.unique(return_inverse=True)
            summed = rows.new_zeros(len(found), rows.shape[1]).index_add_(0, place, rows)
            if module.padding_idx is not None:  # that row is never trained
                summed[found == module.padding_idx] = 0
            total[found.cpu().numpy()] += summed.mul_(scale).square_().cpu().numpy()

    return add


def _add_squares(totals: Totals, name: str, gradient: torch.Tensor) -> None:
    """total += sum_b gradient_b^2; gradient: [examples, *shape of the tensor], overwritten."""
    if name in totals:  # a layer may have no bias
        totals[name][...] += gradient.square_().sum(dim=0).cpu().numpy()
