"""Sums over blocks of rows against one product of all rows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.manifest import Group, Linear
from blindmerge.merge import Products
from blindmerge.statistic import Array
from blindmerge_client.collect import moments
from blindmerge_client.collect.inputs import Part, Seen
from blindmerge_client.collect.moments import Cross, Gram

CPU = torch.device("cpu")
Make = Callable[[np.random.Generator, int], torch.Tensor]


def group(inputs: int, *, bias: bool = True) -> Group:
    layers = (Linear(name="layer", outputs=1, bias=bias),)
    return Group(name="group", inputs=inputs, rows="tokens", layers=layers)


def passes(rng: np.random.Generator, inputs: int, counts: list[int]) -> list[Seen]:
    """float32 inputs of very different size, with a mean, as a model's."""
    scales = 10.0 ** rng.uniform(-3, 2, inputs)
    seen = []
    for count in counts:
        rows = (rng.standard_normal((count, inputs)) + 0.5) * scales
        seen.append(Seen([Part(torch.from_numpy(rows.astype(np.float32)))], count))
    return seen


def extended(seen: list[Seen], bias: bool) -> Array:
    rows = np.vstack([part.rows.numpy().astype(np.float64) for s in seen for part in s.parts])
    return np.hstack([rows, np.ones((len(rows), int(bias)))])


def gamma(terms: int, unit: float) -> float:
    return terms * unit / (1 - terms * unit)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    block_rows=st.integers(1, 33),
    bias=st.booleans(),
    products=st.sampled_from(["float64", "float32"]),
)
def test_blocks_of_rows_change_nothing_but_rounding(
    counts: list[int], block_rows: int, bias: bool, products: Products
) -> None:
    rng, inputs = np.random.default_rng(sum(counts)), 5
    left, right = passes(rng, inputs, counts), passes(rng, inputs, counts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(moments, "BLOCK_ROWS", block_rows)
        gram = Gram(group(inputs, bias=bias), products, CPU)
        cross = Cross(group(inputs, bias=bias), products, CPU)
        for one, other in zip(left, right, strict=True):
            gram.add(one)
            cross.add(one, other)
    x, y = extended(left, bias), extended(right, bias)
    assert gram.count == len(x)
    # What `moments` says of either kind, and the reference's own rounding.
    relative = 2 * gamma(len(x) + 2, 2.0**-53)
    if products == "float32":
        relative += gamma(block_rows + 2, 2.0**-24)
    for found, (a, b) in ((gram.total(), (x, x)), (cross.total(), (x, y))):
        assert found.dtype == np.float64
        assert (np.abs(found - a.T @ b) <= relative * (np.abs(a).T @ np.abs(b))).all()


def test_a_sum_is_symmetric_beyond_one_panel() -> None:
    inputs = moments._PANEL + 7
    gram = Gram(group(inputs), "float64", CPU)
    seen = passes(np.random.default_rng(0), inputs, [20, 30])
    for each in seen:
        gram.add(each)
    total, rows = gram.total(), extended(seen, bias=True)
    np.testing.assert_array_equal(total, total.T)
    assert (
        np.abs(total - rows.T @ rows) <= 2 * gamma(52, 2.0**-53) * np.abs(rows).T @ np.abs(rows)
    ).all()


def test_float32_products_are_far_better_than_a_sum_in_float32() -> None:
    """Blocks are added in float64: more rows do not make it worse."""
    seen = passes(np.random.default_rng(1), 3, [moments.BLOCK_ROWS] * 40)
    gram = Gram(group(3), "float32", CPU)
    naive = torch.zeros(4, 4)
    for each in seen:
        gram.add(each)
        rows = torch.from_numpy(extended([each], bias=True)).float()
        for start in range(0, len(rows), 16):
            few = rows[start : start + 16]
            naive += few.T @ few
    x = extended(seen, bias=True)
    exact, size = x.T @ x, np.abs(x).T @ np.abs(x)
    error = (np.abs(gram.total() - exact) / size).max()
    assert error <= gamma(moments.BLOCK_ROWS + 2, 2.0**-24)
    assert error < 0.2 * (np.abs(naive.numpy() - exact) / size).max()


def test_a_weighted_part_is_scaled_with_its_ones() -> None:
    rows = torch.tensor([[3.0], [5.0]])
    gram = Gram(group(1), "float64", CPU)
    gram.add(Seen([Part(rows[:1]), Part(rows[1:], scale=2.0)], 1))
    np.testing.assert_array_equal(gram.total(), [[9 + 100, 3 + 20], [3 + 20, 1 + 4]])
    assert gram.count == 1


@pytest.mark.parametrize("products", ["float64", "float32"])
def test_rows_are_never_all_in_memory(products: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one block of rows at a time, in one place, whatever the passes are."""
    blocks: list[tuple[int, int]] = []
    monkeypatch.setattr(moments, "BLOCK_ROWS", 8)
    monkeypatch.setattr(
        moments, "_add_square", lambda _, rows: blocks.append((rows.data_ptr(), len(rows)))
    )
    gram = Gram(group(4), products, CPU)
    for seen in passes(np.random.default_rng(2), 4, [3, 30, 0, 10]):
        gram.add(seen)
    gram.total()
    assert [size for _, size in blocks] == [8, 8, 8, 8, 8, 3]
    assert len({address for address, _ in blocks}) == 1


@pytest.mark.parametrize(("products", "unit"), [("float64", 2.0**-53), ("float32", 2.0**-24)])
@pytest.mark.parametrize(("panel", "tile"), [(3, 5), (4, 4), (7, 2), (20, 1)])
def test_panels_and_tiles_make_the_whole_matrix(
    products: Products, unit: float, panel: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "_PANEL", panel)
    monkeypatch.setattr(moments, "_TILE", tile)
    seen = passes(np.random.default_rng(3), 12, [50])
    x = extended(seen, bias=True)
    gram = Gram(group(12), products, CPU)
    gram.add(seen[0])
    total = gram.total()
    bound = 2 * gamma(52, unit) * (np.abs(x).T @ np.abs(x))
    assert (np.abs(total - x.T @ x) <= bound).all()
    np.testing.assert_array_equal(total, total.T)
