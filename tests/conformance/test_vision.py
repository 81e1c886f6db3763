"""Image classifiers: patches are rows, and a patch embedding is a linear layer over them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from blindmerge.checkpoint import Checkpoint
from blindmerge.manifest import Group, Linear
from blindmerge.merge import RegMean
from blindmerge.statistic import Array
from blindmerge_client import predict as module
from blindmerge_client.batches import Batch, batches
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.predict import predict
from blindmerge_client.scores import score
from blindmerge_client.session import Session
from blindmerge_server.simulate.bounds import public_layouts
from support.fishers import assert_close, in_float64
from support.jobs import Job, make_plan_for, noisy, under_masks, weights_of
from support.merging import merge
from support.pico_vision import SHADES, Vision, pico_images, pico_vision

KINDS: tuple[Vision, ...] = ("vit", "clip")
OWNERS = 3
each_kind = pytest.mark.parametrize("kind", KINDS)


def vision_job(
    folder: Path, kind: Vision, method: str = "regmean", owners: int = OWNERS, **options: Any
) -> Job:
    base = pico_vision(folder / "base", kind)
    return Job(
        base=base,
        owners=tuple(noisy(base, folder / f"own-{k}", k) for k in range(owners)),
        texts=tuple(pico_images(folder / "images", 20, k).texts for k in range(owners)),
        plan=make_plan_for(base, method, **options),
        folder=folder,
    )


@each_kind
def test_every_tensor_has_exactly_one_rule(kind: Vision, tmp_path: Path) -> None:
    checkpoint = Checkpoint(pico_vision(tmp_path, kind))
    manifest = checkpoint.manifest
    assert checkpoint.task == "image-classification"
    assert manifest.shapes == checkpoint.shapes
    means = {mean.name for block in manifest.blocks for mean in block.means}
    # Norms, positions and the token for the whole image; all matrices and the convolution are
    # regressed.
    assert all("norm" in n or "position" in n or "cls" in n or "class_emb" in n for n in means)
    groups = [group for block in manifest.blocks for group in block.groups]
    assert len(groups) == 1 + 2 * 4 + 1
    assert (groups[0].inputs, groups[0].rows) == (3 * 4 * 4, "unfolded-patches")


def captured(model: Any, group: Group, batched: list[Batch]) -> Array:
    """The rows of a group, patch by patch, with ones as last column."""
    calls: list[Array] = []
    module = model.get_submodule(group.layers[-1].path)
    handle = module.register_forward_hook(
        lambda _module, inputs, _output: calls.append(inputs[0].double().numpy())
    )
    with torch.no_grad():
        for batch in batched:
            model(**batch.inputs)
    handle.remove()
    rows = np.array([row for call in calls for row in _rows(group, call)])
    return np.hstack([rows, np.ones((len(rows), 1))]) if group.bias else rows


def _rows(group: Group, call: Array) -> Iterator[Array]:
    for image in call:
        if group.rows == "unfolded-patches":
            for top in range(0, 8, 4):
                for left in range(0, 8, 4):
                    yield image[:, top : top + 4, left : left + 4].reshape(-1)
        elif group.rows == "patches":
            assert len(image) == 5  # four patches and the token for all of them
            yield from image
        else:
            yield image


def stacked(layer: Linear, weights: Mapping[str, Array]) -> Array:
    """[W; b], of a convolution with one column per filter."""
    weight = weights[f"{layer.name}.weight"]
    matrix = weight.reshape(len(weight), -1).T
    return np.vstack([matrix, weights[f"{layer.name}.bias"]]) if layer.bias else matrix


@each_kind
def test_merged_layers_are_the_least_squares_solution_over_all_patches(
    kind: Vision, tmp_path: Path
) -> None:
    job = vision_job(tmp_path, kind, ridge=0.01, rows_factor=0.0)
    method = job.plan.method
    assert isinstance(method, RegMean)
    found, own = weights_of(merge(job)), [weights_of(path) for path in job.owners]
    processor = load_tokenizer(job.base)
    models = [load_model(path) for path in job.owners]
    batched = [batches(processor, texts, 32, 64) for texts in job.texts]
    for group in [group for block in job.plan.blocks for group in block.groups]:
        rows = [captured(m, group, b) for m, b in zip(models, batched, strict=True)]
        scaled = [x / np.sqrt(len(x)) for x in rows]
        t = np.mean(sum((x**2).sum(axis=0) for x in scaled))
        ridge = np.sqrt(method.ridge * t) * np.eye(group.width)
        for layer in group.layers:
            theirs = [stacked(layer, weights) for weights in own]
            targets = [x @ w for x, w in zip(scaled, theirs, strict=True)]
            expected = np.linalg.lstsq(
                np.vstack([*scaled, ridge]),
                np.vstack([*targets, ridge @ np.mean(theirs, axis=0)]),
                rcond=None,
            )[0]
            difference = np.abs(stacked(layer, found) - expected)
            # As for texts: see test_regmean_on_models.
            bound = 2.0**-24 * np.abs(expected) + 100 * group.width**2 * 2.0**-53
            assert (difference <= bound).all(), layer.name
            mean = np.mean(theirs, axis=0)
            assert (np.abs(mean - expected) > 100 * bound).any(), layer.name


@each_kind
@pytest.mark.parametrize("method", ["regmean", "progressive"])
def test_equal_owners_give_their_checkpoint_back(kind: Vision, method: str, tmp_path: Path) -> None:
    one = vision_job(tmp_path, kind, method, owners=1, ridge=0.01, rows_factor=0.0)
    job = Job(one.base, one.owners * OWNERS, one.texts * OWNERS, one.plan, one.folder)
    found, own = weights_of(merge(job)), weights_of(one.owners[0])
    for name, array in own.items():
        if method == "regmean":
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        else:
            # Its targets are outputs in float32, solved with a condition of 100 times the width.
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4, err_msg=name)


@each_kind
def test_the_merged_model_loads_and_predicts(
    kind: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    job = vision_job(tmp_path, kind, rows_factor=0.0)
    merged = merge(job)
    model, report = AutoModelForImageClassification.from_pretrained(
        merged, output_loading_info=True
    )
    assert not any(report.values()), report
    assert tuple(model.config.id2label.values()) == SHADES
    test = pico_images(tmp_path / "test", 6, seed=9)
    logits = predict(merged, test.texts, 32)
    assert logits.shape == (6, 2)
    assert score("image-classification", logits, test, SHADES).metrics.keys() == {"accuracy", "f1"}
    pixels = batches(load_tokenizer(merged), test.texts, 32, 6)[0].inputs["pixel_values"]
    with torch.no_grad():
        alone = model(pixels).logits.numpy()
    # Another order of sums of float32, on logits of size 100: see test_predict.
    np.testing.assert_allclose(logits, alone, rtol=0, atol=4e-3)


def by_value(folder: Path) -> dict[str, str]:
    """By name of a checkpoint's tensor the parameter with its numbers, which may have another."""
    own = {name: p.detach().numpy() for name, p in load_model(folder).named_parameters()}
    return {
        name: next(other for other, numbers in own.items() if np.array_equal(numbers, tensor))
        for name, tensor in weights_of(folder).items()
    }


@each_kind
def test_fisher_information_is_that_of_one_image_at_a_time(kind: Vision, tmp_path: Path) -> None:
    job = vision_job(tmp_path, kind, "fisher", owners=1)
    model = in_float64(load_model(job.owners[0]))
    images = batches(load_tokenizer(job.base), job.texts[0], 32, 1)
    totals = {name: np.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    for image in images:
        for log_p in torch.log_softmax(model(image.inputs["pixel_values"].double()).logits[0], 0):
            model.zero_grad()
            log_p.backward(retain_graph=True)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    gradient = parameter.grad.numpy()
                    totals[name] += float(log_p.detach().exp()) * gradient**2 / len(images)
    session = job.session(0)
    found: dict[str, Array] = {}
    for number in range(len(job.plan.blocks)):
        found |= session.evidence(number).fishers
    assert_close(found, {name: totals[same] for name, same in by_value(job.owners[0]).items()})
    assert found.keys() == job.plan.manifest.shapes.keys()


@each_kind
def test_public_bounds_hold_for_owners_with_images(kind: Vision, tmp_path: Path) -> None:
    job = under_masks(vision_job(tmp_path, kind, rows_factor=0.0))
    (layouts,) = public_layouts(job.plan, job.base)
    for block, layout in enumerate(layouts):
        statistic = job.session(0).contribute(block)
        for part in range(layout.blocks):
            layout.encode(statistic, part)  # raises Overflow for a number beyond its bound


def test_a_job_notices_that_an_image_changed(tmp_path: Path) -> None:
    job = vision_job(tmp_path, "clip")
    other = pico_images(tmp_path / "others", 20, 7).texts
    job.session(0)
    with pytest.raises(Exception, match="changed since the job"):
        Session(job.plan, job.base, job.owners[0], other, job.folder / "session-0")
