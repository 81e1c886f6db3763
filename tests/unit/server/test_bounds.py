"""Public bounds: the same everywhere, for the plan's schema, and no owner exceeds them."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.encoding import Bits, fits
from blindmerge.errors import Overflow, PeerInvalid
from blindmerge.merge import METHODS
from blindmerge.tasks import LANGUAGE, Task
from blindmerge_client.finetune import finetune, prepare_base
from blindmerge_client.options import TrainingOptions
from blindmerge_client.session import Session
from blindmerge_server.simulate import bounds
from blindmerge_server.simulate.bounds import cached_layouts, public_layouts
from support.federations import LABELS
from support.jobs import Job, make_plan_for, under_masks, with_plan
from support.pico import Architecture, examples_for, labels_for, pico_encoder, pico_examples

EXAMPLES = pico_examples(96, seed=3)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """An owner that was fine-tuned far: its scores on its own texts are near perfect."""
    folder = tmp_path_factory.mktemp("tuned")
    pico_encoder(folder / "encoder")
    prepare_base(folder / "encoder", LABELS, 0, folder / "base")
    options = TrainingOptions(epochs=2, learning_rate=1e-2, max_length=16)
    finetune(folder / "base", EXAMPLES, options, folder / "own")
    plan = make_plan_for(folder / "base")
    return Job(folder / "base", (folder / "own",) * 3, (EXAMPLES.texts,) * 3, plan, folder)


def job_of(tuned: Job, method: str, bits: Bits = 64, **options: Any) -> Job:
    plan = make_plan_for(tuned.base, method, **options)
    return under_masks(Job(tuned.base, tuned.owners, tuned.texts, plan, tuned.folder), bits)


@pytest.mark.parametrize(
    ("method", "bits"),
    [(name, bits) for name in METHODS for bits in get_args(Bits) if (name, bits) != ("fisher", 32)],
)
def test_no_owner_exceeds_the_bounds(method: str, bits: Bits, tuned: Job, tmp_path: Path) -> None:
    job = job_of(tuned, method, bits)
    plan = job.plan
    layouts = public_layouts(plan, job.base)
    assert [[dict(part.shapes) for part in parts] for parts in layouts] == [
        [dict(plan.method.schema_of(plan.blocks[block])) for block in blocks]
        for blocks in plan.phases
    ]
    assert {(part.bits, part.owners) for parts in layouts for part in parts} == {(bits, 3)}
    own = Checkpoint(job.owners[0])
    session = Session(plan, job.base, own.path, EXAMPLES.texts, tmp_path / "session")
    largest = 0.0
    for blocks, parts in zip(plan.phases, layouts, strict=True):
        for block, part in zip(blocks, parts, strict=True):
            statistic = session.contribute(block)
            for array in part.arrays:
                flat = statistic[array.name].reshape(-1)
                scaled = np.abs(flat * array.factors(0, array.size))
                largest = max(largest, float(scaled.max()))
            for number in range(part.blocks):
                part.encode(statistic, number)
        if plan.method.progressive:  # the merged model is far from the base, too
            session.receive(own.read(plan.blocks[blocks[0]].shapes))
    assert fits(largest, 3, bits)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("mpnet", "single-label"),
        ("mixtral", "single-label"),
        ("gpt2", "causal-lm"),
        ("t5", "seq2seq"),
    ],
)
def test_no_fisher_information_exceeds_the_bounds(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    """Also of tables that all share, of experts that few texts reach, and of vocabularies."""
    examples, base = examples_for(task, 64, seed=3), tmp_path / "base"
    labels = () if task in LANGUAGE else labels_for(task)
    pico_encoder(base, architecture, labels=labels, task=task)
    options = TrainingOptions(epochs=2, learning_rate=1e-2, max_length=16)
    finetune(base, examples, options, tmp_path / "own")
    plan = make_plan_for(base, "regmean", fisher_share=0.25, rows_factor=0.0)
    job = under_masks(Job(base, (tmp_path / "own",) * 3, (examples.texts,) * 3, plan, tmp_path), 48)
    (layouts,) = public_layouts(job.plan, base)
    session = Session(job.plan, base, tmp_path / "own", examples.texts, tmp_path / "session")
    for block, part in enumerate(layouts):
        statistic = session.contribute(block)
        for number in range(part.blocks):
            part.encode(statistic, number)  # raises Overflow for a number beyond its bound


def test_the_limits_are_real(tuned: Job, tmp_path: Path) -> None:
    """An owner whose numbers are 2^40 times as large is refused, not clipped."""
    job = job_of(tuned, "average")
    ((_, part, *_),) = public_layouts(job.plan, job.base)
    session = Session(job.plan, job.base, job.owners[0], EXAMPLES.texts, tmp_path / "session")
    statistic = session.contribute(1)
    wild = {name: 2.0**40 * array for name, array in statistic.arrays.items()}
    with pytest.raises(Overflow, match="array '"):
        part.encode(type(statistic)(statistic.schema, wild), 0)


def test_bounds_are_the_same_for_everybody(tuned: Job, tmp_path: Path) -> None:
    job = job_of(tuned, "regmean")
    first = public_layouts(job.plan, job.base)
    np.random.default_rng().random()
    assert public_layouts(job.plan, job.base) == first
    # They are kept, and read back as they were.
    for _ in range(2):
        assert cached_layouts(job.plan, job.base, tmp_path) == first
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".cbor"


def test_bounds_are_made_once_for_each_kind_of_sum(
    tuned: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(plan: Any, base: Path) -> Any:
        made.append(plan)
        return public_layouts(plan, base)

    monkeypatch.setattr(bounds, "public_layouts", counted)
    job = job_of(tuned, "average")
    cached_layouts(job.plan, job.base, tmp_path)
    # A job of another name has the same bounds.
    cached_layouts(with_plan(job, job="job-2").plan, job.base, tmp_path)
    assert len(made) == 1
    for other in (job_of(tuned, "average", 48), job_of(tuned, "task-arithmetic")):
        cached_layouts(other.plan, other.base, tmp_path)
    assert len(made) == len(list(tmp_path.iterdir())) == 3


def test_a_plan_for_another_base_or_without_masks_has_no_bounds(tuned: Job, tmp_path: Path) -> None:
    job = job_of(tuned, "average")
    with pytest.raises(PeerInvalid, match="another base model"):
        public_layouts(with_plan(job, base="0" * 64).plan, job.base)
    for ask in (public_layouts, lambda plan, base: cached_layouts(plan, base, tmp_path)):
        with pytest.raises(PeerInvalid, match="without masks"):
            ask(tuned.plan, tuned.base)
    assert not list(tmp_path.iterdir())


def test_a_mean_over_examples_needs_no_room_for_more_of_them(tuned: Job) -> None:
    """What is not needed is precision: Fisher information is compared with a floor of 10^-6."""
    exponents = {
        (weighting, examples): public_layouts(
            with_plan(job_of(tuned, "fisher", weighting=weighting), examples=examples).plan,
            tuned.base,
        )[0][0]
        .arrays[0]
        .scale.exponents[0]
        for weighting in ("equal", "tokens")
        for examples in (100, 100 << 7)
    }
    assert exponents["equal", 100] == exponents["equal", 100 << 7]
    assert exponents["tokens", 100] == exponents["tokens", 100 << 7] + 7
