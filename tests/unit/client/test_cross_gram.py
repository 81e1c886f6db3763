"""Moments between the inputs in two models, against rows that other hooks captured."""

from pathlib import Path

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.merge import CrossGramEvidence
from blindmerge.statistic import Array
from blindmerge_client.batches import batches
from blindmerge_client.collect.gram import collect_cross_grams
from blindmerge_client.collect.runner import BlockRunner
from blindmerge_client.models import load_model, load_tokenizer
from support.captured import captured_rows
from support.jobs import LABELS, noisy
from support.pico import IN_FORWARD_ORDER, Architecture, pico_encoder, pico_examples


class Case:
    """Two models of one base, and the same batches for both."""

    def __init__(self, folder: Path, architecture: Architecture, same: bool = False) -> None:
        base = pico_encoder(folder / "base", architecture, labels=LABELS)
        self.manifest = Checkpoint(base).manifest
        merged = noisy(base, folder / "merged", seed=1)
        self.merged = load_model(merged)
        self.own = load_model(merged if same else noisy(base, folder / "own", seed=2))
        self.blocks = self.manifest.blocks
        self.groups = [group for block in self.blocks for group in block.groups]
        self.batches = batches(load_tokenizer(base), pico_examples(9, seed=3).texts, 32, 4)
        self.folder = folder

    def collect(self) -> dict[str, CrossGramEvidence]:
        modules = self.manifest.modules
        merged = BlockRunner(self.merged, modules, self.batches, self.folder / "merged-states")
        own = BlockRunner(self.own, modules, self.batches, self.folder / "own-states")
        return {
            name: evidence
            for block in self.blocks
            for name, evidence in collect_cross_grams(merged, own, block).items()
        }


def summation_bound(x: Array, y: Array) -> Array:
    """See `test_gram.py`: two sums of these products differ by at most 2 gamma_n sum |x_i y_j|."""
    return np.asarray(2 * (len(x) + 9) * 2.0**-53 * (np.abs(x).T @ np.abs(y)))


@pytest.mark.parametrize("architecture", IN_FORWARD_ORDER)
def test_equals_products_over_full_forward_passes(
    architecture: Architecture, tmp_path: Path
) -> None:
    case = Case(tmp_path, architecture)
    found = case.collect()
    merged = captured_rows(case.merged, case.groups, case.batches)
    own = captured_rows(case.own, case.groups, case.batches, like=merged)
    assert found.keys() == merged.keys()
    for name, evidence in found.items():
        x, y = merged[name].rows, own[name].rows
        assert evidence.rows == merged[name].count == own[name].count
        assert (np.abs(evidence.total - x.T @ x) <= summation_bound(x, x)).all(), name
        assert (np.abs(evidence.cross - x.T @ y) <= summation_bound(x, y)).all(), name
        np.testing.assert_array_equal(evidence.total, evidence.total.T)
        for array in (evidence.total, evidence.cross):
            assert array.dtype == np.float64
            assert array.flags.c_contiguous
        # The rows of one model would not do for the other; embeddings differ as well.
        assert np.abs(x - y).max() > 1e-3, name


def test_of_one_model_with_itself_both_moments_are_equal(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", same=True)
    rows = captured_rows(case.own, case.groups, case.batches)
    for name, evidence in case.collect().items():
        difference = np.abs(evidence.total - evidence.cross)
        assert (difference <= summation_bound(rows[name].rows, rows[name].rows)).all()


def test_no_hook_stays(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert")
    case.collect()
    for module in (*case.merged.modules(), *case.own.modules()):
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in vars(module)
