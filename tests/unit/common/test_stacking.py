"""A layer as one matrix and back, number by number, also where it is longer than one step."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from blindmerge.manifest import Linear
from blindmerge.manifest.blocks import Stored
from blindmerge.merge.stacking import put_stacked, stacked
from blindmerge.statistic import Array

EXPERTS, EXPERT = 3, 1
sizes = st.sampled_from((1, 2, 63, 64, 65, 130))


@st.composite
def layers(draw: st.DrawFn) -> tuple[Linear, int]:
    """A layer in every way of storing it, and its number of inputs."""
    outputs, inputs = draw(sizes), draw(sizes)
    bias = draw(st.booleans())
    kind = draw(st.sampled_from(("outputs-first", "inputs-first", "convolution", "expert")))
    options: dict[str, Any] = {}
    if kind == "convolution":
        options["stored"] = Stored(
            weight="c", bias="d" if bias else "", shape=(outputs, inputs, 1, 1), inputs=inputs
        )
    elif kind == "expert":
        bias, start = False, EXPERT * outputs
        shape = (EXPERTS, outputs, inputs)
        options["stored"] = Stored(weight="c", bias="", shape=shape, inputs=inputs, start=start)
    else:
        options["layout"] = kind
    return Linear(name="x", outputs=outputs, bias=bias, **options), inputs


def by_index(layer: Linear, weights: dict[str, Array], row: int, output: int) -> float:
    """The number of W~ in this place, as the layer's tensors have it."""
    name, *biases = layer.tensors
    weight = weights[name]
    if layer.stored is not None and weight.ndim == 3:
        weight = weight[EXPERT]
    inputs = weight.shape[0] if layer.layout == "inputs-first" else weight.shape[1]
    if row == inputs:
        return float(weights[biases[0]][output])
    place = (row, output) if layer.layout == "inputs-first" else (output, row)
    return float(weight[place + (0,) * (weight.ndim - 2)])


@given(layers())
def test_every_number_comes_from_its_place_and_goes_back_there(case: tuple[Linear, int]) -> None:
    layer, inputs = case
    rng = np.random.default_rng(0)
    base = {name: rng.standard_normal(shape) for name, shape in layer.shapes(inputs).items()}
    weights = {name: np.full(array.shape, np.nan) for name, array in base.items()}
    change = rng.standard_normal((inputs + layer.bias, layer.outputs))
    put_stacked(layer, change, base, weights)
    matrix = stacked(layer, base)
    assert matrix.shape == change.shape
    for row in range(len(matrix)):
        for output in range(layer.outputs):
            before = by_index(layer, base, row, output)
            assert matrix[row, output] == before
            assert by_index(layer, weights, row, output) == before + change[row, output]
    # Of a tensor with several experts the others stay as they were.
    written = sum(int(np.isfinite(array).sum()) for array in weights.values())
    assert written == change.size
