"""A session refuses what it must, answers the same every time, and survives its process."""

import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import (
    CheckpointInvalid,
    DataInvalid,
    NotFinite,
    PeerInvalid,
    SchemaMismatch,
)
from blindmerge.merge import METHODS, Progressive, RegMean, RegMeanPlusPlus
from blindmerge.statistic import Statistic, unpack_symmetric
from blindmerge_client import session as module
from blindmerge_client.collect.fisher import collect_fisher
from blindmerge_client.session import Session
from support.jobs import Job, make_job, noisy, weights_of, with_plan
from support.pico import pico_encoder

PRIVATE = "the zebra sold its phone to fabius"


def raw(statistic: Statistic) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in statistic.arrays.items()}


def other_base(job: Job) -> Job:
    other = pico_encoder(job.folder / "other", seed=9, labels=job.plan.labels)
    return with_plan(job, base=Checkpoint(other).sha256)


def other_labels(job: Job) -> Job:
    return with_plan(job, labels=tuple(reversed(job.plan.labels)))


def other_manifest(job: Job) -> Job:
    blocks = job.plan.manifest.blocks
    manifest = job.plan.manifest.model_copy(update={"blocks": blocks[:-2] + blocks[-1:]})
    return with_plan(job, manifest=manifest)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_base, "another base model"),
        (other_labels, "labels"),
        (other_manifest, "tensors"),
        (lambda job: with_plan(job, max_length=65), "max_length is more than"),
        (lambda job: with_plan(job, max_length=2), "max_length is not above 2"),
    ],
)
def test_a_plan_for_something_else_is_refused(tmp_path: Path, spoil: Any, words: str) -> None:
    job = spoil(make_job(tmp_path))
    with pytest.raises(PeerInvalid, match=words) as raised:
        job.session(0)
    # The coordinator reads it.
    assert str(tmp_path) not in raised.value.message
    assert not (tmp_path / "session-0").exists()


@pytest.mark.parametrize("max_length", [3, 64])
def test_the_shortest_and_the_longest_max_length_work(tmp_path: Path, max_length: int) -> None:
    job = with_plan(make_job(tmp_path), max_length=max_length)
    job.session(0).contribute(1)


def test_no_text_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    with pytest.raises(DataInvalid, match="no examples"):
        Session(job.plan, job.base, job.owners[0], [], tmp_path / "session")


def test_a_model_that_was_not_fine_tuned_from_the_base_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    stranger = pico_encoder(tmp_path / "stranger", seed=9, labels=job.plan.labels)
    with pytest.raises(CheckpointInvalid, match="not fine-tuned from the base"):
        Session(job.plan, job.base, stranger, job.texts[0], tmp_path / "session")


@pytest.mark.parametrize("block", [-1, -4, 4, 5, 10**30])
def test_a_block_that_the_plan_does_not_have_is_refused(tmp_path: Path, block: int) -> None:
    session = make_job(tmp_path).session(0)
    for ask in (session.contribute, session.evidence):
        with pytest.raises(PeerInvalid, match=f"no block {block}: the plan has 4"):
            ask(block)


# What a progressive owner sends depends on the merged model: tests/conformance.
ONE_SHOT = sorted(name for name, method in METHODS.items() if not method.progressive)


@pytest.mark.parametrize("method", ONE_SHOT)
def test_asking_twice_gives_the_same_bytes(method: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, method=method)
    session = job.session(0)
    first = [raw(session.contribute(block)) for block in range(4)]
    assert [raw(session.contribute(block)) for block in range(4)] == first
    assert [raw(session.contribute(block)) for block in (3, 1)] == [first[3], first[1]]
    # Another process: on the same folder, and from scratch.
    assert [raw(job.session(0).contribute(block)) for block in range(4)] == first
    shutil.rmtree(tmp_path / "session-0")
    assert [raw(job.session(0).contribute(block)) for block in range(4)] == first


def test_half_of_the_examples_are_every_other_one(tmp_path: Path) -> None:
    job = make_job(tmp_path, shrinkage="two-fold", rows_factor=0.0)
    whole = make_job(tmp_path / "whole", rows_factor=0.0)
    some = Session(whole.plan, whole.base, whole.owners[0], whole.texts[0][::2], tmp_path / "half")
    for number in range(4):
        found, expected = job.session(0).evidence(number), whole.session(0).evidence(number)
        half = some.evidence(number)
        for name, gram in found.grams.items():
            assert gram.half is not None
            for one, other in ((gram, expected.grams[name]), (gram.half, half.grams[name])):
                assert one.rows == other.rows
                # Texts of other batches are padded differently: float32 of values about one.
                np.testing.assert_allclose(
                    one.total, other.total, rtol=0, atol=one.rows * 1e-5 * np.abs(one.total).max()
                )


def test_one_example_has_no_halves(tmp_path: Path) -> None:
    job = make_job(tmp_path, shrinkage="two-fold", rows_factor=0.0)
    session = Session(job.plan, job.base, job.owners[0], ["a good film"], tmp_path / "session")
    statistic = session.contribute(1)
    starved = [name for name in statistic.schema if name.endswith(":starved")]
    assert starved
    assert all(statistic[name] == 1.0 for name in starved)


@pytest.mark.parametrize("method", ONE_SHOT)
def test_every_statistic_has_the_schema_of_the_plan_whatever_the_texts(
    method: str, tmp_path: Path
) -> None:
    job = make_job(tmp_path, method=method)
    for number, texts in enumerate((["a"], [PRIVATE] * 40, ["x " * 500, "", "\N{SNOWMAN}"])):
        session = Session(job.plan, job.base, job.owners[0], texts, tmp_path / str(number))
        for number, block in enumerate(job.plan.blocks):
            statistic = session.contribute(number)
            schema = job.plan.method.schema_of(block)
            assert {n: array.shape for n, array in statistic.arrays.items()} == dict(schema)
            assert {array.dtype for array in statistic.arrays.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize("method", [RegMean, RegMeanPlusPlus, Progressive])
def test_products_are_as_exact_as_the_plan_says(method: Any, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    exact, single = (
        with_plan(replace(job, folder=tmp_path / kind), method=method(products=kind, rows_factor=0))
        for kind in ("float64", "float32")
    )
    number = next(n for n, block in enumerate(exact.plan.blocks) if block.groups)
    base, sums = weights_of(job.base), []
    for each in (exact, single):
        session = each.session(0)
        for block in each.plan.blocks[:number]:
            session.receive({name: base[name] for name in block.shapes})
        group = each.plan.blocks[number].groups[0]
        packed = session.contribute(number)[f"{group.name}:gram"]
        sums.append(unpack_symmetric(packed, group.width))
    # `moments`: 1.3e-4 sum |x_i x_j|, which is at most what the diagonal says (Cauchy-Schwarz).
    size = np.sqrt(np.outer(np.diagonal(sums[0]), np.diagonal(sums[0])))
    difference = np.abs(sums[1] - sums[0]).max()
    assert difference > 0
    assert (np.abs(sums[1] - sums[0]) <= 1.3e-4 * size).all()


def test_no_text_is_in_a_statistic_or_on_disk(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    session = Session(job.plan, job.base, job.owners[0], [PRIVATE] * 3, tmp_path / "session")
    words = [word.encode() for word in PRIVATE.split() if len(word) > 3]
    for block in range(4):
        for name, data in raw(session.contribute(block)).items():
            assert not any(word in data or word in name.encode() for word in words)
    files = [path for path in (tmp_path / "session").rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert not any(word in file.read_bytes() for word in words)


def test_only_the_plans_number_of_examples_is_used(tmp_path: Path) -> None:
    job = with_plan(make_job(tmp_path), examples=4)
    texts = job.texts[0]
    some = Session(job.plan, job.base, job.owners[0], texts[:4], tmp_path / "some")
    every = Session(job.plan, job.base, job.owners[0], texts, tmp_path / "every")
    assert raw(some.contribute(1)) == raw(every.contribute(1))
    assert every.evidence(3).grams["classifier"].rows == 4


def test_a_folder_of_another_model_or_other_texts_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.session(0).contribute(1)
    retrained = noisy(job.base, tmp_path / "retrained", seed=99)
    for own, texts in ((retrained, job.texts[0]), (job.owners[0], job.texts[1])):
        with pytest.raises(DataInvalid, match="changed since the job"):
            Session(job.plan, job.base, own, texts, tmp_path / "session-0")
    job.session(0).contribute(2)


def test_the_base_tokenizer_is_used_not_the_owners(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    before = raw(job.session(0).contribute(1))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (job.owners[0] / file).unlink()
    own = Session(job.plan, job.base, job.owners[0], job.texts[0], tmp_path / "again")
    assert raw(own.contribute(1)) == before


def test_the_folder_is_private(tmp_path: Path) -> None:
    make_job(tmp_path).session(0)
    assert stat.S_IMODE((tmp_path / "session-0").stat().st_mode) == 0o700


def test_received_blocks_make_the_merged_checkpoint(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    merged = Checkpoint(noisy(job.base, tmp_path / "merged", seed=7))
    # Blocks come alone or together, in any order.
    for blocks in ((3,), (1, 0), (2,)):
        with pytest.raises(CheckpointInvalid, match="lacks the blocks"):
            job.session(0).finish()
        names = [name for block in blocks for name in job.plan.blocks[block].shapes]
        # Every time another process: what was received before is still there.
        job.session(0).receive(merged.read(names))
    assert Checkpoint(job.session(0).finish()).sha256 == merged.sha256


def test_received_blocks_that_are_none_are_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    session = job.session(0)
    good = Checkpoint(job.base).read(job.plan.blocks[1].shapes)
    name, *others = good
    with pytest.raises(SchemaMismatch, match="1 merged tensors are not in the plan"):
        session.receive(good | {"stranger": np.ones(1)})
    with pytest.raises(SchemaMismatch, match="not those of block"):
        session.receive({other: good[other] for other in others})
    with pytest.raises(SchemaMismatch, match="not those of block"):
        session.receive(good | {name: np.ones((1, 1))})
    with pytest.raises(NotFinite, match=name):
        session.receive(good | {name: np.full_like(good[name], np.nan)})
    session.receive({})
    with pytest.raises(CheckpointInvalid, match="lacks the blocks"):
        session.finish()


def test_fisher_information_of_all_blocks_comes_from_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []

    def counted(*args: Any) -> None:
        passes.append(args)
        collect_fisher(*args)

    monkeypatch.setattr(module, "collect_fisher", counted)
    job = make_job(tmp_path, method="fisher", texts=5)
    session = job.session(0)
    for number in range(len(job.plan.blocks)):
        session.contribute(number)
    assert len(job.plan.blocks) > 1
    assert len(passes) == 1
