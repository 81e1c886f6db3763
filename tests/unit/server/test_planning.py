"""Plans: signed, written once, and never another one under the same name."""

from pathlib import Path

import pytest

from blindmerge.errors import BlindmergeError, ConfigInvalid, TooFewOwners
from blindmerge.secagg.secret import OsRandomness
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.setup import make_home as make_owner
from blindmerge_server.config import JobSettings, OwnerKeys
from blindmerge_server.planning import make_plan, read_plan, write_plan
from support.deployment import Deployment
from support.pico import pico_encoder


@pytest.fixture
def federation(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


def settings(federation: Deployment, **changes: object) -> JobSettings:
    return JobSettings.read(federation.job).model_copy(update=changes)


def test_a_plan_is_what_the_job_says_and_signed_by_the_coordinator(federation: Deployment) -> None:
    signed = write_plan(federation.server, settings(federation))
    coordinator = federation.server.identity().member
    assert signed.verify([coordinator]) == coordinator
    plan, job = signed.plan, settings(federation)
    assert (plan.job, plan.method, plan.examples) == (job.name, job.method, job.examples)
    assert plan.masks != "off"
    assert plan.masks.roster == federation.server.roster().sha256.hex()
    file = federation.server.plans / f"{plan.job}.plan"
    assert SignedPlan.decode(file.read_bytes()) == signed == read_plan(federation.server, plan.job)


def test_the_same_job_again_changes_nothing(federation: Deployment) -> None:
    first = write_plan(federation.server, settings(federation))
    file = federation.server.plans / f"{first.plan.job}.plan"
    before = file.stat().st_mtime_ns
    assert write_plan(federation.server, settings(federation)) == first
    assert file.stat().st_mtime_ns == before


def test_another_plan_of_the_same_name_is_refused(federation: Deployment, tmp_path: Path) -> None:
    first = write_plan(federation.server, settings(federation))
    for change in ({"examples": 7}, {"bits": 48}):
        with pytest.raises(ConfigInvalid, match="has another plan already"):
            write_plan(federation.server, settings(federation, **change))
    dora = make_owner(tmp_path / "dora", "dora", OsRandomness())
    federation.server.add(OwnerKeys.read(dora.public_keys_file))
    with pytest.raises(ConfigInvalid, match="has another plan already"):
        write_plan(federation.server, settings(federation))
    assert read_plan(federation.server, first.plan.job) == first


@pytest.mark.parametrize("damage", ["cut", "signature", "empty"])
def test_a_damaged_plan_is_refused(federation: Deployment, damage: str) -> None:
    signed = write_plan(federation.server, settings(federation))
    file = federation.server.plans / f"{signed.plan.job}.plan"
    data = {
        "cut": signed.encode()[:-1],
        "signature": SignedPlan(signed.plan, bytes(64)).encode(),
        "empty": b"",
    }
    file.write_bytes(data[damage])
    with pytest.raises(ConfigInvalid, match="is damaged"):
        read_plan(federation.server, signed.plan.job)


def test_a_plan_that_is_not_there_is_told(federation: Deployment) -> None:
    with pytest.raises(ConfigInvalid, match="there is no plan of job 'other'"):
        read_plan(federation.server, "other")


def test_what_cannot_be_merged_is_refused_before_anything_is_written(
    federation: Deployment, tmp_path: Path
) -> None:
    headless = pico_encoder(tmp_path / "headless", "bert")
    with pytest.raises(BlindmergeError):
        make_plan(settings(federation, base=headless), federation.server.roster(), tmp_path)
    with pytest.raises(ConfigInvalid, match="cannot be planned"):
        make_plan(settings(federation, name="Not A Name"), federation.server.roster(), tmp_path)
    federation.server.remove("anna")
    with pytest.raises(TooFewOwners, match="needs 3 owners"):
        write_plan(federation.server, settings(federation))
    assert not list(federation.server.folder.glob("plans/*"))
