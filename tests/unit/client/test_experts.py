"""Experts of a mixture: stacked or one by one in a file, starved, laid out in other ways."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Block
from blindmerge_client.batches import Batch
from blindmerge_client.collect.experts import chosen
from blindmerge_client.collect.inputs import Inputs
from blindmerge_client.collect.live import put_merged
from blindmerge_client.models import load_model
from blindmerge_server.rounds import BlockSum, solve_block
from support.jobs import Job, edit_weights, make_job, make_plan_for
from support.merging import merge

PATH = "model.layers.0.mlp.experts"


def stacked(folder: Path, out: Path) -> Path:
    """The same Mixtral with its experts in the tensors that the module has."""
    shutil.copytree(folder, out)
    tensors = load_file(folder / "model.safetensors")
    single = {n: t for n, t in tensors.items() if "block_sparse_moe" not in n}
    for layer in range(2):
        old = f"model.layers.{layer}.block_sparse_moe"
        new = f"model.layers.{layer}.mlp"
        single[f"{new}.gate.weight"] = tensors[f"{old}.gate.weight"]
        parts = [
            [tensors[f"{old}.experts.{e}.{name}.weight"] for name in ("w1", "w3", "w2")]
            for e in range(3)
        ]
        single[f"{new}.experts.gate_up_proj"] = np.stack([np.vstack(p[:2]) for p in parts])
        single[f"{new}.experts.down_proj"] = np.stack([p[2] for p in parts])
    save_file(single, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("method", ["regmean", "progressive", "average"])
def test_both_ways_of_writing_experts_merge_to_the_same_numbers(
    method: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {} if method == "average" else {"rows_factor": 0.0, "ridge": 0.01}
    job = make_job(tmp_path / "single", "mixtral", owners=2, method=method, **options)
    base = stacked(job.base, tmp_path / "base")
    other = Job(
        base,
        tuple(stacked(own, tmp_path / own.name) for own in job.owners),
        job.texts,
        make_plan_for(base, method, **options),
        tmp_path / "stacked",
    )
    found, expected = load_model(merge(other)).state_dict(), load_model(merge(job)).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Two solves of the same equations, side by side or apart: rounded to float32 once.
        bound = 2.0**-23 * tensor.abs().max() + 2.0**-40
        assert (found[name] - tensor).abs().max() <= bound, name


def test_experts_with_few_rows_are_averaged_and_the_report_says_so(tmp_path: Path) -> None:
    job = make_job(tmp_path, "mixtral", owners=2, texts=9, rows_factor=4.0)
    for folder in (job.base, *job.owners):
        # All experts are alike to the router, so one of three never gets a token.
        edit_weights(folder, lambda tensors: [t.fill(0) for n, t in tensors.items() if GATE in n])
    job = Job(job.base, job.owners, job.texts, make_plan_for(job.base), tmp_path)
    base = Checkpoint(job.base)
    writer = CheckpointWriter(tmp_path / "merged", base, job.plan.blocks)
    sessions = [job.session(owner) for owner in range(2)]
    counts: dict[str, list[int]] = {}
    reports = {}
    for number in range(len(job.plan.blocks)):
        total = BlockSum(job.plan, number)
        for owner, session in enumerate(sessions):
            for name, gram in session.evidence(number).grams.items():
                counts.setdefault(name, []).append(gram.rows)
            total.add(f"owner-{owner}", session.contribute(number).arrays)
        for report in solve_block(job.plan, total.total(), base, writer):
            reports[report.layers] = report
    groups = [group for block in job.plan.blocks for group in block.groups]
    assert any(counts[group.name] == [0, 0] for group in groups)
    for group in groups:
        few = sum(rows < 4 * group.width for rows in counts[group.name])
        fallback = reports[tuple(layer.name for layer in group.layers)].fallback
        assert (fallback is None) == (few == 0), group.name
        if fallback is not None:
            assert fallback.startswith(f"{few} owner(s) had fewer than")
    assert {few.expert is None for few in groups if counts[few.name] == [0, 0]} == {False}


GATE = "block_sparse_moe.gate"


def case(folder: Path) -> tuple[Any, Block]:
    """A Mixtral in memory, and the block of its first layer."""
    job = make_job(folder, "mixtral", owners=0)
    return load_model(job.base), job.plan.blocks[1]


def test_merged_experts_come_to_the_module_that_has_them(tmp_path: Path) -> None:
    model, block = case(tmp_path)
    rng = np.random.default_rng(0)
    tensors = {n: rng.random(shape).astype(np.float32) for n, shape in block.shapes.items()}
    put_merged(model, block, tensors)
    layer = model.model.layers[0]
    old = "model.layers.0.block_sparse_moe"
    for e in range(3):
        gate, up, down = (tensors[f"{old}.experts.{e}.{n}.weight"] for n in ("w1", "w3", "w2"))
        np.testing.assert_array_equal(layer.mlp.experts.gate_up_proj[e].detach(), [*gate, *up])
        np.testing.assert_array_equal(layer.mlp.experts.down_proj[e].detach(), down)
    gate = tensors[f"{old}.gate.weight"]
    np.testing.assert_array_equal(layer.mlp.gate.weight.detach(), gate)
    with pytest.raises(CheckpointInvalid, match=r"no place for 'model\.layers\.0\.other'"):
        put_merged(model, block, {"model.layers.0.other": gate})


@pytest.mark.parametrize("trait", ["is_transposed", "has_bias"])
def test_experts_that_are_laid_out_in_another_way_are_refused(trait: str, tmp_path: Path) -> None:
    model, block = case(tmp_path)
    groups = [group for group in block.groups if group.rows == "routed-activations"]
    setattr(model.get_submodule(PATH), trait, True)
    inputs = Inputs(model, groups)
    inputs.see(PATH, (torch.ones(2, 16), torch.zeros(2, 2, dtype=torch.int64)))
    batch = Batch((0,), {"attention_mask": torch.ones(1, 2, dtype=torch.int64)})
    with pytest.raises(CheckpointInvalid, match=f"{trait} is True"):
        inputs.rows(batch)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(2, 16),),
        (torch.ones(2, 16), torch.ones(2, 2)),
        (torch.ones(2, 16), torch.zeros(3, 2, dtype=torch.int64)),
        (torch.ones(2, 16), "experts"),
    ],
)
def test_a_mixture_that_is_called_in_another_way_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(CheckpointInvalid, match="is not called with"):
        chosen(arguments)
