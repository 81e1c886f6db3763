"""Sums of products of rows, X'~^T X~, made of large blocks of rows.

Every product passes once over the whole sum, which for a batch of short texts takes longer than
its arithmetic. So rows are gathered over passes, and multiplied BLOCK_ROWS at a time. How:

- `float64`: rows and products in float64. Products of float32 inputs are exact, and a sum of n
  rows is off by at most gamma_n(2^-53) sum |x'_i x_j|, gamma_n(u) = n u / (1 - n u).
- `float32`: those of a block in float32, blocks added in float64; off by at most
  gamma_b(2^-24) sum |x'_i x_j| with b = BLOCK_ROWS + 2, 1.2e-4 (Higham 2002, eq. 3.5). The
  roundings of a block are not all of one sign: a hundredth of that is usual.

Sums are where the model is, on the CPU or a GPU; rows are never all in memory.
"""

from collections.abc import Iterator

import torch

from blindmerge.manifest import Group
from blindmerge.merge import Products
from blindmerge.statistic import Array
from blindmerge_client.collect.inputs import Seen

__all__ = ["BLOCK_ROWS", "Cross", "Gram"]

BLOCK_ROWS = 2048
_PANEL = 256  # columns of a product at once
_TILE = 512  # rows and columns that are mirrored at once
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


class _Rows:
    """The rows of a group, cut into blocks of BLOCK_ROWS whatever the passes are."""

    def __init__(self, group: Group, products: Products, device: torch.device) -> None:
        self._block = torch.empty(BLOCK_ROWS, group.width, dtype=_DTYPES[products], device=device)
        self._inputs = group.inputs
        self._filled = 0

    def blocks(self, seen: Seen) -> Iterator[torch.Tensor]:
        """Every block X~ that the rows of a pass complete, to be used before the next is drawn."""
        for part in seen.parts:
            start = 0
            while start < len(part.rows):
                stop = min(len(part.rows), start + BLOCK_ROWS - self._filled)
                here = self._block[self._filled : self._filled + stop - start]
                here[:, : self._inputs] = part.rows[start:stop]
                here[:, self._inputs :] = 1.0
                if part.scale != 1.0:
                    here *= part.scale
                self._filled += stop - start
                start = stop
                if self._filled == BLOCK_ROWS:
                    self._filled = 0
                    yield self._block

    def rest(self) -> torch.Tensor:
        """The rows that completed no block."""
        return self._block[: self._filled]


class Gram:
    """X~^T X~ of one group."""

    def __init__(self, group: Group, products: Products, device: torch.device) -> None:
        self._rows = _Rows(group, products, device)
        # Of a matrix whose rows lie one after another only the lower triangle is written.
        self._sum = _zeros(group, device)
        self.count = 0

    def add(self, seen: Seen) -> None:
        """Adds the rows of a pass."""
        for block in self._rows.blocks(seen):
            _add_square(self._sum, block)
        self.count += seen.count

    def total(self) -> Array:
        """The whole symmetric matrix; nothing can be added after it."""
        _add_square(self._sum, self._rows.rest())
        _mirror(self._sum)
        return _numpy(self._sum)


class Cross:
    """X'~^T X~ of one group in two models, row by row the same token."""

    def __init__(self, group: Group, products: Products, device: torch.device) -> None:
        self._left = _Rows(group, products, device)
        self._right = _Rows(group, products, device)
        self._sum = _zeros(group, device)

    def add(self, left: Seen, right: Seen) -> None:
        """Adds the rows X'~ and X~ of one pass each."""
        blocks = zip(self._left.blocks(left), self._right.blocks(right), strict=True)
        for x, y in blocks:
            _add_product(self._sum, x, y)

    def total(self) -> Array:
        """The matrix; nothing can be added after it."""
        _add_product(self._sum, self._left.rest(), self._right.rest())
        return _numpy(self._sum)


def _zeros(group: Group, device: torch.device) -> torch.Tensor:
    return torch.zeros(group.width, group.width, dtype=torch.float64, device=device)


def _add_square(total: torch.Tensor, rows: torch.Tensor) -> None:
    """total += rows^T rows, of which the lower triangle counts.

    Panel by panel, and of each what is not above the diagonal: half of the work. BLAS has a
    symmetric product for that, but torch does not offer it, and threads of another BLAS beside
    torch's own wait for work in a loop, on the cores that torch needs.
    """
    for start in range(0, len(total), _PANEL):
        stop = min(start + _PANEL, len(total))
        _add_product(total[start:stop, :stop], rows[:, start:stop], rows[:, :stop])


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left^T right."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


def _mirror(matrix: torch.Tensor) -> None:
    """Copies the lower triangle over the upper one, in place."""
    starts = range(0, len(matrix), _TILE)
    for start in starts:
        stop = start + _TILE
        corner = matrix[start:stop, start:stop]
        corner += torch.tril(corner, -1).T - torch.triu(corner, 1)
        for other in starts[: start // _TILE]:
            end = other + _TILE
            matrix[other:end, start:stop] = matrix[start:stop, other:end].T


def _numpy(matrix: torch.Tensor) -> Array:
    return matrix.cpu().numpy()
