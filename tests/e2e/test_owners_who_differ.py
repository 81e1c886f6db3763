"""Owners whose labels differ, one of them with a LoRA adapter, as processes around a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint
from blindmerge.statistic import Array
from blindmerge_client.adapters import full_weights
from blindmerge_client.jobs import Jobs
from blindmerge_client.verdict import compare, settle
from support.deployment import Deployment, set_keys
from support.federations import json_lines
from support.jobs import LABELS, noisy
from support.lora import adapter
from support.material import SPLITS, Material
from support.pico import pico_encoder, pico_examples

NAMES = ("anna", "bert", "cleo")
OWN_LABELS = (("a", "b", "c", "d"), LABELS, ("cold", "warm", "hot"))
WITH_ADAPTER = 1

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def material(folder: Path) -> Material:
    """One body for all; the heads of two owners have other labels than the base."""
    base = pico_encoder(folder / "base", labels=LABELS)

    def equip(number: int, home: Path) -> None:
        labels = OWN_LABELS[number]
        if number == WITH_ADAPTER:
            adapter(home / "own", base, seed=number)
        else:
            start = pico_encoder(folder / f"start-{number}", labels=labels)  # the same body
            noisy(start, home / "own", seed=number)
        for offset, split in enumerate(SPLITS):
            examples = pico_examples(120, seed=10 * number + offset)
            (home / f"{split}.jsonl").write_text(json_lines(examples, labels))

    return Material(base, equip, NAMES, 1000, 16, 1.0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, str]]:
    """A job by the average, and what the coordinator saw of it."""
    folder = tmp_path_factory.mktemp("differ")
    with Deployment(folder, method='{ name = "average" }', material=material(folder)) as federation:
        set_keys(federation.job, {"heads": "kept"})
        federation.start("server", *NAMES)
        merged = federation.merge()
        assert merged.returncode == 0, merged.stdout + merged.stderr
        for name in NAMES:
            federation.wait_for(name, "job 'my-job-1' is done")
        yield federation, merged.stdout


def body_of(federation: Deployment) -> dict[str, Array]:
    """What the server merged."""
    checkpoint = Checkpoint(federation.server.jobs / "my-job-1" / "merged")
    return checkpoint.read(checkpoint.manifest.with_head_kept.shapes)


def test_every_owner_gets_the_merged_body_under_its_own_head(
    done: tuple[Deployment, str], tmp_path: Path
) -> None:
    federation = done[0]
    body = body_of(federation)
    for number, name in enumerate(NAMES):
        home = federation.owners[name]
        own = Checkpoint(full_weights(home.folder / "own", federation.base, tmp_path))
        plan = Jobs(home.jobs).find("my-job-1", "done").plan
        comparison = compare(home, plan)
        assert comparison.examples == 120
        model, report = AutoModelForSequenceClassification.from_pretrained(
            settle(home, "my-job-1", "accepted"), output_loading_info=True
        )
        assert not any(report.values()), report
        assert tuple(model.config.id2label.values()) == OWN_LABELS[number]
        found = Checkpoint(home.folder / "current")
        for tensor, array in found.read(found.shapes).items():
            expected = body[tensor] if tensor in body else own.read([tensor])[tensor]
            np.testing.assert_array_equal(array, expected, err_msg=tensor)


def test_an_adapter_counts_as_the_model_that_it_makes_of_the_base(
    done: tuple[Deployment, str], tmp_path: Path
) -> None:
    federation = done[0]
    folders = [federation.owners[name].folder / "own" for name in NAMES]
    whole = [Checkpoint(full_weights(each, federation.base, tmp_path)) for each in folders]
    for name, array in body_of(federation).items():
        mean = np.mean([each.read([name])[name] for each in whole], axis=0)
        # As in `support.jobs.assert_average`.
        assert (np.abs(array - mean) <= 2.0**-24 * np.abs(mean) + 2.0**-46).all(), name


def test_the_coordinator_is_told_that_its_own_copy_has_no_trained_head(
    done: tuple[Deployment, str],
) -> None:
    federation, printed = done
    folder = federation.server.jobs / "my-job-1"
    report = json.loads((folder / "report.json").read_text())
    base = Checkpoint(federation.base)
    assert base.manifest.head is not None
    heads = sorted(base.manifest.head.shapes)
    assert report["heads_kept"] == heads
    assert "NO TRAINED HEAD in `merged`" in printed
    for name, array in Checkpoint(folder / "merged").read(heads).items():
        np.testing.assert_array_equal(array, base.read([name])[name])
