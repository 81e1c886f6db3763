"""An owner's jobs on disk: how they move, what a damaged file says, and who holds the lock."""

import json
import os
from pathlib import Path
from typing import get_args

import pytest

from blindmerge.errors import ConfigInvalid, PolicyRefused, ResourceMissing
from blindmerge.identity import Identity, Roster
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.jobs import Jobs, State
from support.plans import make_plan
from support.randomness import CounterRandomness
from support.secure_sum import identities

COORDINATOR = Identity.generate("uni", CounterRandomness("uni"))
ROSTER = Roster.of([each.member for each in identities(4)])
DATASET = "d" * 64


def signed(name: str = "job-1") -> SignedPlan:
    return SignedPlan.sign(make_plan(job=name), COORDINATOR)


def asked(jobs: Jobs, name: str = "job-1", *path: State, dataset: str = DATASET) -> SignedPlan:
    """A job that was asked for and went through these states."""
    job = signed(name)
    jobs.ask(job, ROSTER, dataset)
    for state in path:
        jobs.move(job.plan, state)
    return job


PATHS: dict[State, tuple[State, ...]] = {
    "asked": (),
    "approved": ("approved",),
    "refused": ("refused",),
    "running": ("approved", "running"),
    "done": ("approved", "running", "done"),
    "accepted": ("approved", "running", "done", "accepted"),
    "kept": ("approved", "running", "done", "kept"),
}
# By state, where it may go. Written out: the code's own table is what is tested.
MOVES: dict[State, set[State]] = {
    "asked": {"approved", "refused"},
    "approved": {"running", "refused"},
    "running": {"done", "refused"},
    "refused": {"approved"},
    "done": {"accepted", "kept"},
    "accepted": {"kept"},
    "kept": {"accepted"},
}


@pytest.mark.parametrize("state", get_args(State))
def test_a_job_moves_as_a_person_would_expect_and_no_other_way(
    tmp_path: Path, state: State
) -> None:
    for number, target in enumerate(get_args(State)):
        jobs = Jobs(tmp_path / str(number))
        plan = asked(jobs, "job-1", *PATHS[state]).plan
        if target in MOVES[state]:
            assert jobs.move(plan, target).state == target
        else:
            with pytest.raises(ConfigInvalid, match=f"is {state}, so it cannot become {target}"):
                jobs.move(plan, target)
            assert Jobs(jobs.folder).all()[0].state == state


def test_asking_again_changes_nothing(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    job = asked(jobs, "job-1", "approved")
    assert jobs.ask(job, ROSTER, "another dataset").state == "approved"
    assert jobs.all()[0].dataset == DATASET


def test_the_latest_change_is_last_also_within_a_second_and_by_a_clock_that_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path)
    clock = iter([100, 100, 100, 50, 900, 100])
    monkeypatch.setattr("time.time", lambda: next(clock))
    names = ["d", "a", "c", "b"]
    plans = {name: asked(jobs, name).plan for name in names}
    assert [job.plan.job for job in jobs.all()] == names
    jobs.move(plans["a"], "approved")
    jobs.move(plans["d"], "refused")
    assert [job.plan.job for job in jobs.all()] == ["c", "b", "a", "d"]


def test_a_clock_that_was_set_back_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path)
    jobs.check_clock(0)
    monkeypatch.setattr("time.time", lambda: 1000.0)
    asked(jobs, "early")
    jobs.check_clock(940)
    with pytest.raises(PolicyRefused, match="before the last change of job 'early'"):
        jobs.check_clock(939)


def test_a_job_that_is_finished_twice_keeps_what_a_person_said(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    plan = asked(jobs, "job-1", *PATHS["running"]).plan
    jobs.finish(plan)
    assert jobs.all()[0].state == "done"
    jobs.move(plan, "kept")
    jobs.finish(plan)
    assert jobs.all()[0].state == "kept"


@pytest.mark.parametrize("state", get_args(State))
def test_what_may_have_been_sent_counts(tmp_path: Path, state: State) -> None:
    jobs = Jobs(tmp_path)
    asked(jobs, "other-data", *PATHS["done"], dataset="e" * 64)
    before = asked(jobs, "before", *PATHS[state])
    counts = state in ("running", "done", "accepted", "kept")
    assert jobs.earlier(signed("new").plan, DATASET) == ((ROSTER,) if counts else ())
    assert jobs.earlier(before.plan, DATASET) == ()


def test_jobs_are_found_by_name_or_hash(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    first, second = asked(jobs, "one"), asked(jobs, "two", "approved")
    assert jobs.find(None, "asked").plan == first.plan
    assert jobs.find("two", "asked", "approved").plan == second.plan
    assert jobs.find(second.plan.sha256[:9], "approved").plan == second.plan
    with pytest.raises(ConfigInvalid, match="2 jobs are asked or approved"):
        jobs.find(None, "asked", "approved")
    with pytest.raises(ConfigInvalid, match="no job 'three' is asked"):
        jobs.find("three", "asked")


@pytest.mark.parametrize("file", ["plan", "roster", "state.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_file_stops_everything_and_is_named(
    tmp_path: Path, file: str, damage: str
) -> None:
    jobs = Jobs(tmp_path)
    folder = tmp_path / asked(jobs).plan.sha256
    data = (folder / file).read_bytes()
    other = {"plan": signed("job-2").encode(), "roster": b"x", "state.json": b'{"state": "sent"}'}
    new = {"empty": b"", "cut": data[:-1], "other": other[file]}[damage]
    (folder / file).write_bytes(new)
    with pytest.raises(ResourceMissing, match="is damaged") as caught:
        jobs.earlier(signed("new").plan, DATASET)
    assert str(folder) in caught.value.message
    (folder / file).unlink()
    if file == "plan":  # written last: without it there is no job
        assert jobs.all() == ()
    else:
        with pytest.raises(ResourceMissing, match="is damaged"):
            jobs.all()


def test_a_process_that_died_before_the_job_was_whole_begins_anew(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    job = signed()
    folder = tmp_path / job.plan.sha256
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"state": "done"}))
    assert jobs.all() == ()
    assert jobs.ask(job, ROSTER, DATASET).state == "asked"


def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs")
    folder = jobs.folder / asked(jobs).plan.sha256
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "plan": 0o600,
        "roster": 0o600,
        "state.json": 0o600,
    }
    assert folder.stat().st_mode & 0o777 == jobs.folder.stat().st_mode & 0o777 == 0o700


def test_a_state_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def noted(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    jobs = Jobs(tmp_path)
    folder = tmp_path / asked(jobs).plan.sha256
    synced.clear()
    jobs.move(signed().plan, "approved")
    assert str(folder) in synced, "the folder's entry"
    assert any("state.json" in name for name in synced), "the file"
