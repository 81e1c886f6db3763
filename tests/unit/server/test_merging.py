"""`server merge`: who is waited for, what is shown, and what happens when the server is lost."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from blindmerge.errors import ConfigInvalid, JobAborted, ResourceMissing, TooFewOwners
from blindmerge.files import only_one
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.guard import Guard
from blindmerge_server import merging
from blindmerge_server.config import JobSettings
from blindmerge_server.flower_run import ServerGone
from blindmerge_server.overview import job_lines
from blindmerge_server.planning import write_plan
from blindmerge_server.report.job_report import job_report, read_job_report, write_job_report
from blindmerge_server.strategy import Drop, JobRecord
from support.deployment import Deployment
from support.guards import run_guards

NAMES = ("anna", "bert", "cleo", "dora")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def federation(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path, NAMES)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def joined(
    federation: Deployment,
    patch: pytest.MonkeyPatch,
    here: Callable[[int], dict[int, str]],
    out: frozenset[str] = frozenset(),
) -> tuple[dict[int, str], list[str]]:
    """Who joins if at the n-th look these nodes are there, and what was said."""
    looks: list[int] = []
    said: list[str] = []

    def online(_: object) -> dict[int, str]:
        looks.append(0)
        return here(len(looks))

    patch.setattr(merging, "nodes_online", online)
    signed = federation.signed()
    return merging._joined(federation.server, signed, {*out}, 100.0, said.append), said


def test_all_owners_are_waited_for_and_named_as_they_come(
    federation: Deployment, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = joined(federation, monkeypatch, lambda n: dict(enumerate(NAMES[: n + 1])))
    assert found == dict(enumerate(NAMES))
    assert said == [
        "  anna is here (1 of 4)",
        "  bert is here (2 of 4)",
        "  waiting for cleo, dora",
        "  cleo is here (3 of 4)",
        "  waiting for dora",
        "  dora is here (4 of 4)",
    ]
    assert clock.now_s < 10


def test_who_left_the_job_before_is_not_waited_for(
    federation: Deployment, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = dict(enumerate(NAMES))
    found, _ = joined(federation, monkeypatch, lambda _: everybody, frozenset({"dora"}))
    assert set(found.values()) == {"anna", "bert", "cleo"}
    there = {node: name for node, name in everybody.items() if name != "dora"}
    joined(federation, monkeypatch, lambda _: there, frozenset({"dora"}))
    assert clock.now_s == 0


def test_after_the_patience_as_many_as_a_sum_needs_begin(
    federation: Deployment, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = dict(enumerate(NAMES[:3]))
    found, said = joined(federation, monkeypatch, lambda _: three)
    assert found == three
    assert 100 < clock.now_s < 110
    assert said.count("  waiting for dora") == 1


def test_too_few_owners_are_told_by_name(
    federation: Deployment, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TooFewOwners, match="2 of 4 owners came, a sum needs 3") as caught:
        joined(federation, monkeypatch, lambda _: {1: "anna", 2: "bert", 3: "mallory"})
    assert "missing: cleo, dora" in caught.value.hint
    assert clock.now_s > 100


def test_a_server_that_is_lost_in_the_middle_is_waited_for(clock: Clock) -> None:
    losses: list[Exception] = [
        httpx.ConnectError("refused"),
        ServerGone("no server"),
        ServerGone(""),
    ]
    record, said = JobRecord(), list[str]()

    def attempt(begun: Callable[[], None]) -> JobRecord:
        begun()
        if losses:
            raise losses.pop(0)
        return record

    assert merging._in_spite_of_losses(attempt, said.append) is record
    assert said == ["  the server is lost; waiting for it (blindmerge server run)"]
    assert clock.now_s == 15.0


def test_a_server_that_never_answered_is_not_waited_for(clock: Clock) -> None:
    def attempt(begun: Callable[[], None]) -> JobRecord:
        del begun
        raise ServerGone("no server answers")

    with pytest.raises(ServerGone):
        merging._in_spite_of_losses(attempt, lambda _: None)
    assert clock.now_s == 0


def test_other_errors_are_not_losses(clock: Clock) -> None:
    def attempt(begun: Callable[[], None]) -> JobRecord:
        begun()
        raise ResourceMissing("the disk is full")

    with pytest.raises(ResourceMissing, match="full"):
        merging._in_spite_of_losses(attempt, lambda _: None)
    assert clock.now_s == 0


def test_without_a_server_the_command_says_how_to_start_one(federation: Deployment) -> None:
    settings = JobSettings.read(federation.job)
    with pytest.raises(ServerGone, match="no server answers") as caught:
        merging.run_merge(federation.server, settings, lambda _: None)
    assert f"blindmerge server run {federation.server.folder}" in caught.value.hint
    (line,) = job_lines(federation.server)
    assert line.state == "stopped: merge it again, 0 of 8 exchanges"


def test_two_commands_do_not_merge_in_one_folder(federation: Deployment) -> None:
    settings = JobSettings.read(federation.job)
    with only_one(federation.server.merge_lock_file, "x"):
        with pytest.raises(JobAborted, match="another `blindmerge server merge` runs"):
            merging.run_merge(federation.server, settings, lambda _: None)
        federation.server.merge_lock_file.write_text(settings.name)
        write_plan(federation.server, settings)
        assert [line.state for line in job_lines(federation.server)] == ["planned"]


@pytest.fixture
def finished(federation: Deployment) -> SignedPlan:
    """A job whose report is written, as `server merge` does it."""
    signed = write_plan(federation.server, JobSettings.read(federation.job))
    guards = {name: Guard(home) for name, home in federation.owners.items()}
    record = run_guards(federation, guards, signed).record
    record.dropped["dora"] = Drop("R1 share", "no readable answer in time")
    versions = dict.fromkeys(("blindmerge", "flwr", "torch", "transformers"), "1")
    report = job_report(signed, federation.server.roster(), record, "2027", 1.5, versions)
    write_job_report(report, federation.server.jobs / signed.plan.job / "report.json")
    return signed


def test_a_job_that_is_done_is_shown_and_not_run_again(
    federation: Deployment, finished: SignedPlan
) -> None:
    said: list[str] = []
    report = merging.run_merge(federation.server, JobSettings.read(federation.job), said.append)
    assert said == ["this job is done; a new one needs a new name"]
    assert report.plan_sha256 == finished.plan.sha256
    assert [owner.missing for owner in report.owners] == [
        None,
        None,
        None,
        "R1 share: no readable answer in time",
    ]
    assert [line.state for line in job_lines(federation.server)] == ["done"]
    file = federation.server.jobs / finished.plan.job / "report.json"
    assert json.loads(file.read_text())["protection"].startswith("masks on: the server saw only")
    file.write_text(file.read_text()[:-3])
    with pytest.raises(ConfigInvalid, match="is damaged"):
        read_job_report(file)
