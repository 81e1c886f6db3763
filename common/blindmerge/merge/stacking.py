"""A layer as one matrix: its transposed weight, and its bias as one more row.

So `X~ W~` is the layer's output, whatever tensors its numbers lie in.
"""

from collections.abc import Mapping

import numpy as np

from blindmerge.manifest import Linear
from blindmerge.statistic import Array

__all__ = ["put_stacked", "stacked"]

_ROWS = 64  # that are written at once: they stay in the cache while they are transposed


def stacked(layer: Linear, weights: Mapping[str, Array]) -> Array:
    """W~ [width, outputs], a copy.   weights: the layer's tensors, by name."""
    weight, *bias = _views(layer, weights)
    return np.vstack([weight, *(each[None] for each in bias)])


def put_stacked(
    layer: Linear, matrix: Array, base: Mapping[str, Array], weights: Mapping[str, Array]
) -> None:
    """Writes W_0~ + W~ into the layer's tensors in `weights`, which are contiguous.

    matrix: W~ [width, outputs].   base: the tensors of W_0~.
    """
    weight, *bias = _views(layer, weights)
    start, *start_bias = _views(layer, base)
    for first in range(0, len(weight), _ROWS):
        some = slice(first, min(first + _ROWS, len(weight)))
        # Of two orders of memory numpy follows the first operand's, here that of the result.
        np.add(start[some].T, matrix[some].T, out=weight[some].T)
    for each, before in zip(bias, start_bias, strict=True):
        np.add(before, matrix[-1], out=each)


def _views(layer: Linear, weights: Mapping[str, Array]) -> list[Array]:
    """The weight [inputs, outputs] and, if there is one, the bias [outputs]."""
    tensors = [weights[name] for name in layer.tensors]
    if layer.stored is not None:
        # Of contiguous tensors these are views, and put_stacked writes through them.
        part = slice(layer.stored.start, layer.stored.start + layer.outputs)
        tensors = [
            tensors[0].reshape(-1, layer.stored.inputs)[part],
            *(b[part] for b in tensors[1:]),
        ]
    if layer.layout == "outputs-first":
        tensors[0] = tensors[0].T
    return tensors
