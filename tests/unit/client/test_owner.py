"""An owner and its policy on masks: both sides must want the same."""

from pathlib import Path

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import PeerInvalid, PolicyRefused
from blindmerge_client.owner import Owner
from support.jobs import Job, make_job, under_masks
from support.pico import pico_examples


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, owners=3, texts=4, method="average")


def test_a_member_of_a_roster_sends_nothing_in_the_open(job: Job) -> None:
    owner = under_masks(job).owner(0)
    for block, messages in ((0, []), (None, []), (None, [b"one"]), (0, [b"one"])):
        with pytest.raises(PolicyRefused, match="the plan has no masks") as refused:
            owner.answer(job.plan, block, messages)
        assert refused.value.hint


def test_an_owner_without_a_membership_has_no_part_in_masks(job: Job) -> None:
    plan = under_masks(job).plan
    for block, messages in ((0, []), (None, [b"one"])):
        with pytest.raises(PolicyRefused, match="'anna' has no identity and roster"):
            job.owner(0).answer(plan, block, messages)


def test_in_the_open_there_are_statistics_and_no_messages(job: Job) -> None:
    owner = job.owner(0)
    answer = owner.answer(job.plan, 1, [])
    expected = job.session(0).contribute(1)
    assert answer.keys() == expected.arrays.keys()
    for name, array in answer.items():
        np.testing.assert_array_equal(array, expected[name])
    assert owner.answer(job.plan, None, []) == {}
    with pytest.raises(PeerInvalid, match="no messages"):
        owner.answer(job.plan, 1, [b"one"])


def test_a_job_in_the_open_stores_no_keys(job: Job) -> None:
    job.owner(0).answer(job.plan, 1, [])
    assert not list(job.folder.rglob("seat.state"))


def test_jobs_do_not_share_a_folder(job: Job) -> None:
    masked = under_masks(job)
    job.owner(0).session(job.plan)
    masked.owner(0).session(masked.plan)
    folders = {path.name for path in (job.folder / "anna").iterdir()}
    assert folders == {job.plan.sha256, masked.plan.sha256}


def test_the_session_stays_open_from_exchange_to_exchange(job: Job) -> None:
    owner = job.owner(0)
    first = owner.session(job.plan)
    assert owner.session(type(job.plan).decode(job.plan.encode())) is first
    assert owner.session(under_masks(job).plan) is not first


def test_an_owner_without_test_data_publishes_nothing(job: Job) -> None:
    examples = pico_examples(4, seed=0)
    silent = Owner("anna", job.base, job.owners[0], examples, job.folder / "anna", "off")
    merged = Checkpoint(job.owners[1])
    for owner in (silent, job.owner(0)):
        owner.receive(job.plan, merged.read(merged.manifest.shapes))
    assert silent.evaluate(job.plan) == {}
    assert job.owner(0).evaluate(job.plan).keys() == {"accuracy", "f1", "examples"}
