"""Owners and servers that lose power, at every step of a job, and are started again."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.statistic import Array
from support.deployment import Deployment
from support.jobs import NAMES
from support.material import pico_material
from support.networked import networked
from support.processes import wait_until

pytestmark = pytest.mark.network

STEPS = {
    "R0": "is here (3 of 3)",
    "R1": "[1/8]",
    "R2": "[3/8]",
    "R3": "[6/8]",
    "R4": "[7/8]",
    "evaluation": "[8/8]",
}
"""What the coordinator sees last before somebody is killed."""


def _merged(federation: Deployment, job: str) -> dict[str, Array]:
    checkpoint = Checkpoint(federation.server.jobs / job / "merged")
    return dict(checkpoint.read(checkpoint.manifest.shapes))


def _check_finished(federation: Deployment, job: str, method: str = "") -> None:
    """All owners are in the sum, and the model is the one of a job in which nothing happened."""
    undisturbed = f"undisturbed{'-with-another-method' if method else ''}"
    merge = federation.running["merge"]
    wait_until(lambda: merge.poll() is not None, "the end of the job")
    printed = federation.printed("merge")
    assert merge.returncode == 0, printed
    report = (federation.server.jobs / job / "report.json").read_text()
    assert report.count('"missing": null') == 3, report
    if not (federation.server.jobs / undisturbed).exists():
        done = federation.merge(job=federation.new_job(undisturbed, method))
        assert done.returncode == 0, done.stderr
    expected, found = _merged(federation, undisturbed), _merged(federation, job)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def _begin(federation: Deployment, job: str, until: str, method: str = "") -> None:
    (federation.folder / "merge.out").write_text("")
    federation.start_merge(federation.new_job(job, method))
    federation.wait_for("merge", until)


def _start_server(federation: Deployment) -> None:
    before = federation.printed("server").count("listening on")
    federation.start("server")
    federation.wait_for("server", "listening on", before + 1)


@pytest.mark.parametrize("step", STEPS)
def test_an_owner_that_is_killed_and_started_again_stays_in_the_job(
    federation: Deployment, step: str
) -> None:
    job = f"owner-killed-{list(STEPS).index(step)}"
    _begin(federation, job, STEPS[step])
    federation.kill("bert")
    federation.start("bert")
    _check_finished(federation, job)
    assert "still holds its last connection" not in federation.printed("bert")


def test_owners_killed_between_the_sums_of_a_progressive_job_stay_in_it(
    federation: Deployment,
) -> None:
    """Later layers are measured in the model merged so far, which an owner keeps on its disk."""
    method = '{ name = "progressive", rounds = "layer", rows_factor = 1.0 }'
    _begin(federation, "progressive", "R4 unmask 2:", method)
    federation.kill("bert")
    federation.start("bert")
    federation.wait_for("merge", "R2 masked input: bert.encoder.layer.1:")
    federation.kill("anna")
    federation.start("anna")
    _check_finished(federation, "progressive", method)


@pytest.mark.parametrize("step", STEPS)
def test_a_coordinator_that_is_killed_and_started_again_finishes_the_job(
    federation: Deployment, step: str
) -> None:
    job = f"coordinator-killed-{list(STEPS).index(step)}"
    _begin(federation, job, STEPS[step])
    federation.kill("merge")
    federation.kill("server")
    closed = federation.printed("merge").count("/8] ")
    _start_server(federation)
    federation.start_merge(federation.server.folder / f"{job}.toml")
    _check_finished(federation, job)
    if closed:
        assert f"goes on after {closed} of 8 exchanges" in federation.printed("merge")


def test_a_gateway_that_is_killed_ends_its_node_and_the_owner_goes_on(
    federation: Deployment,
) -> None:
    _begin(federation, "gateway-killed", "[2/8]")
    client = federation.running["anna"]
    children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    (gateway,) = map(int, children)
    os.kill(gateway, signal.SIGKILL)
    assert client.wait(60) == 7
    assert "the gateway ended" in federation.printed("anna")
    federation.start("anna")
    _check_finished(federation, "gateway-killed")


def test_no_gateway_outlives_a_client_that_was_killed(federation: Deployment) -> None:
    federation.wait_for("cleo", "connected to")
    client = federation.running["cleo"]
    children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    federation.kill("cleo")
    assert len(children) == 1
    wait_until(lambda: not Path(f"/proc/{children[0]}/exe").exists(), "the gateway to end")
    federation.start("cleo")


def test_the_job_waits_for_a_server_that_is_away_or_says_so(federation: Deployment) -> None:
    _begin(federation, "superlink-killed", "[2/8]")
    federation.kill("server")
    _start_server(federation)
    merge = federation.running["merge"]
    wait_until(lambda: merge.poll() is not None, "the end of the command")
    if merge.returncode != 0:
        assert merge.returncode == 7, federation.printed("merge")
        federation.start_merge(federation.server.folder / "superlink-killed.toml")
    _check_finished(federation, "superlink-killed")


def test_the_sum_is_made_without_an_owner_that_is_gone_for_good(tmp_path: Path) -> None:
    material = pico_material(tmp_path, NAMES[:4])
    with networked(tmp_path, material) as (_, federation):
        federation.start_merge(federation.new_job("one-gone", patience_hours=0.01))
        federation.wait_for("merge", "[2/8]")
        federation.kill("dora")
        merge = federation.running["merge"]
        wait_until(lambda: merge.poll() is not None, "the end of the job")
        assert merge.returncode == 0, federation.printed("merge")
        report = (federation.server.jobs / "one-gone" / "report.json").read_text()
        assert report.count('"missing": null') == 3
        assert "dora is out at R2" in federation.printed("merge")


def test_a_job_with_too_few_owners_left_ends_and_names_who_is_missing(tmp_path: Path) -> None:
    with networked(tmp_path, pico_material(tmp_path)) as (_, federation):
        federation.start_merge(federation.new_job("too-few", patience_hours=0.01))
        federation.wait_for("merge", "[2/8]")
        federation.kill("cleo")
        merge = federation.running["merge"]
        wait_until(lambda: merge.poll() is not None, "the end of the job")
        assert merge.returncode == 6
        printed = federation.printed("merge")
        assert "2 owner(s) are left, a sum needs 3" in printed
        assert "cleo" in printed
        assert not (federation.server.jobs / "too-few" / "merged").exists()
