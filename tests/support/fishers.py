"""When a diagonal Fisher is the one expected."""

import numpy as np

from blindmerge.statistic import Array

__all__ = ["assert_close"]


def assert_close(found: dict[str, Array], expected: dict[str, Array]) -> None:
    """A gradient g of float32 is off by e times its layer's largest; g^2 then by 2 e |g| g_max.

    e = 1000 roundings of 2^-24: two layers forward and back are chains of sums over at most 64
    numbers each. The largest of the layer, not of the tensor: a sum over tokens may cancel, that
    of a key's bias does wholly, since softmax does not see a shift. F averages squares, so
    sqrt(F) stands for |g|. Squares below 2^-126 are lost.
    """
    largest: dict[str, float] = {}
    for name, fisher in expected.items():
        layer = name.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), float(fisher.max()))
    assert found.keys() == expected.keys()
    for name, fisher in expected.items():
        off = 1000 * 2.0**-24 * np.sqrt(largest[name.rpartition(".")[0]])
        bound = 2 * off * np.sqrt(fisher) + off**2 + 2.0**-126
        assert (np.abs(found[name] - fisher) <= bound).all(), name
