"""The true diagonal Fisher information of a model, example by example.

    F = mean over examples x of sum_y p(y|x) (d log p(y|x) / d theta)^2     (Matena and Raffel 2022)

What p(y|x) is depends on the task: one of the labels, a Bernoulli variable for each label, or a
number with the model's output as mean and variance 1; of words a label for each, or the next token.

The square is taken of the gradient of *one* example, so each goes through the model alone. That
holds for any model: for tables that a batch looks up at once, layers that run several times, and
experts. A gradient for each example of a batch, by hooks on linear layers, would take as long.

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
too, but a rare label has a large score.

A language model has a vocabulary of labels, too many for a pass each. There a single column is
differentiated, R_w z_w with R_w = diag(r) - p r^T, r = sqrt(p), and z_w of random signs. Its mean
is F_x too, and its variance below 2 F_x^2: 256 examples alike are off by a tenth or less.
Q_w and z_w come from a hash of the example: the same each time.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from blindmerge.errors import NotFinite
from blindmerge.files import replacing, save_array
from blindmerge.manifest import Block
from blindmerge.statistic import Array
from blindmerge.tasks import LANGUAGE, Task
from blindmerge_client.batches import IGNORED, Batch, following
from blindmerge_client.collect.live import places
from blindmerge_client.progress import Watch, unwatched

__all__ = ["collect_fisher", "read_fisher"]

Roots = Callable[[torch.Tensor], torch.Tensor]


def collect_fisher(
    model: nn.Module,
    task: Task,
    wanted: Iterable[tuple[Block, Iterable[str]]],
    examples: Sequence[Batch],
    folder: Path,
    watch: Watch = unwatched,
) -> None:
    """Writes F of all that `read_fisher` needs into `folder`, float64, a file for each tensor.

    wanted: of every block the tensors whose information is asked for.   examples: one per batch.
    The sums live in memory-mapped files; memory holds the squares of one example in float32. An
    existing `folder` is whole and stays.   watch: shows how many examples are done.
    Raises CheckpointInvalid for a tensor that the model does not have, and NotFinite if its
    outputs are NaN or infinity.
    """
    if any(len(example.indices) != 1 for example in examples):
        raise ValueError("the square of a sum over examples is not the sum of their squares")
    if folder.is_dir():
        return
    state = model.state_dict()
    found = [place for block, names in wanted for place in places(block, names, state).values()]
    with replacing(folder) as temporary:
        temporary.mkdir(mode=0o700)
        totals = {
            name: _zeros(temporary / f"{name}.npy", tuple(state[name].shape))
            for name in {place.name for place in found}
        }
        _accumulate(model.eval(), task, watch(examples), totals)
        for total in totals.values():
            total /= len(examples)
            total.flush()


def _zeros(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float64]]:
    # Not a sparse file, as numpy would make it: where the disk is full, writing to a hole of a
    # mapped file kills the process.
    save_array(path, np.zeros(shape))
    return np.lib.format.open_memmap(path, mode="r+")


def read_fisher(folder: Path, block: Block, names: Iterable[str]) -> dict[str, Array]:
    """F of the named tensors of a block, as `collect_fisher` wrote it."""
    own = {path.stem for path in folder.iterdir()}
    return {
        name: place.of(np.load(folder / f"{place.name}.npy", mmap_mode="r"))
        for name, place in places(block, names, own).items()
    }


def _accumulate(
    model: nn.Module, task: Task, examples: Iterable[Batch], totals: Mapping[str, Array]
) -> None:
    """Adds the squared gradients of every example."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with ExitStack() as cleanup:
        for old in parameters.values():
            cleanup.callback(old.requires_grad_, old.requires_grad)
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.Embedding):  # an example uses few of its rows
                cleanup.callback(setattr, module, "sparse", module.sparse)
                module.sparse = True
        sums = []
        for name in totals.keys() & parameters.keys():  # what else there is has no gradient
            squares = _Squares(torch.from_numpy(totals[name]))
            parameter: Any = parameters[name].requires_grad_()
            cleanup.callback(parameter.register_post_accumulate_grad_hook(squares.add).remove)
            sums.append(squares)
        device = next(model.parameters()).device
        for example in examples:
            inputs = {key: each.to(device) for key, each in example.inputs.items()}
            logits = model(**inputs).logits
            if not torch.isfinite(logits).all():
                raise NotFinite(
                    "the outputs of your model for one of your examples are NaN or infinity",
                    hint="give a model whose scores on your own data are good",
                )
            for direction in _directions(task, example, logits.detach().double()):
                output = (logits * direction.to(logits.dtype)).sum()
                torch.autograd.backward(output, retain_graph=True)
            for each in sums:
                each.finish_example()


class _Squares:
    """The squared gradients of a parameter: of one example in float32, of all in float64.

    Half of the time would go into float64 otherwise, which an example's few columns do not need.
    """

    def __init__(self, total: torch.Tensor) -> None:
        self._total = total
        self._example: torch.Tensor | None = None

    def add(self, parameter: torch.Tensor) -> None:
        """Takes a gradient as soon as it is there."""
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if gradient.is_sparse:
            rows = gradient.coalesce()
            squares = rows.values().double().square_()
            self._total.index_add_(0, rows.indices()[0].cpu(), squares.cpu())
            return
        if self._example is None:
            self._example = torch.zeros_like(gradient)
        self._example.addcmul_(gradient, gradient)

    def finish_example(self) -> None:
        """Adds what there is of it to the sum."""
        if self._example is not None:
            self._total.add_(self._example.cpu())
            self._example.zero_()


def _directions(task: Task, example: Batch, logits: torch.Tensor) -> Sequence[torch.Tensor]:
    """What to differentiate in the space of the logits: tensors of their shape, float64."""
    if task in LANGUAGE:
        return [_of_next_tokens(example, logits)]
    roots = _ROOTS[task](logits)
    if example.words is not None:
        rotated = roots @ _rotations(example, roots.shape[-1]).to(roots.device)
        begins = (example.words >= 0).to(roots.device)
        roots = torch.where(begins[:, :, None, None], rotated, 0.0)
    return roots.unbind(dim=-1)


def _of_next_tokens(example: Batch, logits: torch.Tensor) -> torch.Tensor:
    """R z at every token that is followed by one to predict."""
    p = torch.softmax(logits, dim=-1)
    signed = p.sqrt() * _signs(example, logits.shape).to(logits.device)
    column: torch.Tensor = signed - p * signed.sum(dim=-1, keepdim=True)
    predicts = (following(example.inputs) != IGNORED).to(logits.device)
    return torch.where(predicts[:, :, None], column, 0.0)


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
    "image-classification": _of_one_label,
}
"""A root R of the covariance of the score d log p(y|x) / d logits, by task; logits in float64."""


def _rotations(example: Batch, size: int) -> torch.Tensor:
    """A random orthogonal matrix for every token, [1, tokens, size, size]."""
    shape = (*example.inputs["input_ids"].shape, size, size)
    normal = torch.randn(shape, generator=_generator(example), dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    # LAPACK fixes signs by the matrix; with R's diagonal made positive, Q is uniform.
    rotations: torch.Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return rotations


def _signs(example: Batch, shape: Sequence[int]) -> torch.Tensor:
    """1 or -1, with equal chances."""
    return 2 * torch.randint(0, 2, tuple(shape), generator=_generator(example)) - 1


def _generator(example: Batch) -> torch.Generator:
    """Its seed follows from the example's tokens."""
    digest = hashlib.sha256(example.inputs["input_ids"].numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
