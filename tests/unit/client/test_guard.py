"""The guard: what is asked for, who must approve, what is told, and how a job ends."""

import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from blindmerge.errors import (
    ApprovalNeeded,
    ConfigInvalid,
    PeerInvalid,
    PolicyRefused,
    ResourceMissing,
)
from blindmerge_client.guard import Guard
from blindmerge_client.jobs import Jobs
from blindmerge_server.exchanges import Kind
from support.deployment import Deployment
from support.guards import messages_before, run_guards
from support.jobs import weights_of


@pytest.fixture
def federation(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


@pytest.fixture
def guards(federation: Deployment) -> dict[str, Guard]:
    return {name: Guard(home) for name, home in federation.owners.items()}


def states(federation: Deployment, name: str = "anna") -> list[str]:
    return [job.state for job in Jobs(federation.owners[name].jobs).all()]


def test_a_job_from_the_first_question_to_the_merged_model(
    federation: Deployment, guards: dict[str, Guard]
) -> None:
    merge = run_guards(federation, guards, federation.signed())
    assert not merge.record.dropped
    merged = weights_of(federation.folder / "merged")
    for name in federation.names:
        (job,) = Jobs(federation.owners[name].jobs).all()
        assert job.state == "done"
        own = weights_of(federation.owners[name].jobs / job.plan.sha256 / "merged")
        assert all(np.array_equal(own[key], merged[key]) for key in merged)
    assert not merge.record.scores  # nobody has a `test`


def test_what_leaves_is_said_and_logged_to_the_byte(
    federation: Deployment, guards: dict[str, Guard], caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    guards["anna"] = Guard(federation.owners["anna"], said.append)
    with caplog.at_level(logging.INFO, logger="blindmerge.client"):
        merge = run_guards(federation, guards, federation.signed())
    told = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bytes leave", "\n".join(said))]
    assert sum(told) == merge.record.sent_bytes["anna"]
    steps = [line for line in said if "bytes leave" in line]
    assert [re.sub(r"^my-job-1: (.*?)[,:] .*", r"\1", line) for line in steps] == [
        "fresh keys for a secure sum",
        "sealed shares for the others",
        "masked input 1 of 4",
        "masked input 2 of 4",
        "masked input 3 of 4",
        "masked input 4 of 4",
        "signature of who is in the sum",
        "shares that open the sum",
    ]
    logged = [record.getMessage() for record in caplog.records]
    plan = federation.signed().plan
    for line in steps:
        what = line.removeprefix("my-job-1: ")
        assert f"job my-job-1 (plan {plan.sha256}): {what}" in logged


def test_nothing_is_answered_before_a_person_approves(
    federation: Deployment, guards: dict[str, Guard]
) -> None:
    federation.edit_policy("anna", {"approve": "ask"})
    signed, said = federation.signed(), list[str]()
    anna = Guard(federation.owners["anna"], said.append)
    block, messages = messages_before(federation, guards, signed, Kind.ADVERTISE)
    for _ in range(3):
        with pytest.raises(ApprovalNeeded, match="waits for a person's approval"):
            anna.answer(signed, block, messages)
    assert len(said) == 1, "a person is told once"
    assert "blindmerge client approve" in said[0]
    assert states(federation) == ["asked"]
    assert not list(federation.owners["anna"].jobs.glob("*/seat.state"))
    Jobs(federation.owners["anna"].jobs).move(signed.plan, "approved")
    assert anna.answer(signed, block, messages)
    assert states(federation) == ["running"]


def test_a_job_that_runs_can_be_refused_and_nothing_more_is_sent(
    federation: Deployment, guards: dict[str, Guard]
) -> None:
    signed = federation.signed()
    block, messages = messages_before(federation, guards, signed, Kind.MASKED_INPUT)
    Jobs(federation.owners["anna"].jobs).move(signed.plan, "refused")
    with pytest.raises(PolicyRefused, match="is refused") as caught:
        guards["anna"].answer(signed, block, messages)
    assert caught.value.told == "a person refused the job"
    with pytest.raises(PolicyRefused):
        guards["anna"].receive(signed, {})
    with pytest.raises(PolicyRefused):
        guards["anna"].evaluate(signed)


def test_the_policy_is_read_at_every_request(
    federation: Deployment, guards: dict[str, Guard]
) -> None:
    signed = federation.signed()
    block, messages = messages_before(federation, guards, signed, Kind.MASKED_INPUT)
    federation.edit_policy("anna", {"methods": ["average"]})
    with pytest.raises(PolicyRefused, match="rule 'methods'"):
        guards["anna"].answer(signed, block, messages)
    federation.owners["anna"].policy_file.write_text("methods = 3")
    with pytest.raises(ConfigInvalid, match="methods"):
        guards["anna"].answer(signed, block, messages)


def test_a_roster_file_that_is_not_the_pinned_one_is_refused(
    federation: Deployment, guards: dict[str, Guard]
) -> None:
    home = federation.owners["anna"]
    home.roster_file.write_bytes(home.roster_file.read_bytes()[:-1] + b"x")
    with pytest.raises(PeerInvalid, match="pinned"):
        guards["anna"].answer(federation.signed(), None, ())


def test_the_same_examples_are_used_as_often_as_the_policy_says(
    federation: Deployment, guards: dict[str, Guard]
) -> None:
    run_guards(federation, guards, federation.signed())
    second = federation.signed(job="another")
    with pytest.raises(PolicyRefused, match=r"'max_jobs': asked job 2 .*; allowed at most 1"):
        guards["anna"].answer(second, None, ())
    assert states(federation) == ["done"]
    train = federation.owners["anna"].folder / "train.jsonl"
    train.write_text(train.read_text().replace(": ", ":"))  # other bytes, the same examples
    with pytest.raises(PolicyRefused, match="'max_jobs'"):
        Guard(federation.owners["anna"]).answer(second, None, ())


def test_an_automatic_policy_asks_a_person_when_one_owner_left(tmp_path: Path) -> None:
    names = ("anna", "bert", "cleo", "dora")
    federation = Deployment(tmp_path, names)
    guards = {name: Guard(home) for name, home in federation.owners.items()}
    run_guards(federation, guards, federation.signed())
    federation.server.remove("dora")
    roster = federation.server.roster()
    for name in names[:3]:
        federation.owners[name].roster_file.write_bytes(roster.encode())
        federation.edit_policy(name, {"roster": roster.sha256.hex(), "max_jobs": 2})
    again = federation.signed(job="again")
    with pytest.raises(ApprovalNeeded):
        guards["anna"].answer(again, None, ())
    # By name: within one second jobs come in any order.
    found = Jobs(federation.owners["anna"].jobs).all()
    assert {job.plan.job: job.state for job in found} == {"my-job-1": "done", "again": "asked"}


def test_scores_leave_only_with_test_data(federation: Deployment, guards: dict[str, Guard]) -> None:
    home = federation.owners["bert"]
    (home.folder / "test.jsonl").write_bytes((home.folder / "validation.jsonl").read_bytes())
    home.client_file.write_text(home.client_file.read_text().replace('# test = "data/', 'test = "'))
    said: list[str] = []
    guards["bert"] = Guard(home, said.append)
    merge = run_guards(federation, guards, federation.signed())
    assert set(merge.record.scores) == {"bert"}
    assert merge.record.scores["bert"]["examples"] == 120
    assert any("scores that leave: accuracy 0." in line for line in said)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_on_a_disk_that_takes_nothing_nothing_is_answered(
    federation: Deployment, guards: dict[str, Guard], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    signed = federation.signed()
    block, messages = messages_before(federation, guards, signed, Kind.ADVERTISE)

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceMissing):
            guards["anna"].answer(signed, block, messages)
    assert states(federation) in ([], ["asked"])
    assert guards["anna"].answer(signed, block, messages), "with space again it goes on"
    assert states(federation) == ["running"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("flwr").setLevel(logging.NOTSET)
