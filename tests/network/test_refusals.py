"""Owners whose own rules, or whose people, say no."""

import time

import pytest

from blindmerge_server.config import JobSettings
from blindmerge_server.jobs import JobFolder
from blindmerge_server.planning import write_plan
from support.deployment import Deployment
from support.processes import wait_until

pytestmark = pytest.mark.network


def test_an_owner_whose_policy_refuses_ends_the_job_and_says_which_rule_to_change(
    federation: Deployment,
) -> None:
    federation.edit_policy("bert", {"methods": ["average"]})
    job = federation.new_job("refused-by-policy")
    refused = federation.merge(job=job)
    assert refused.returncode == 6
    assert "bert (PolicyRefused" in refused.stderr
    plan = str(federation.server.plans / "refused-by-policy.plan")
    checked = federation.run(
        "client", "policy", "check", str(federation.owners["bert"].folder), plan
    )
    assert checked.returncode == 8
    assert 'add "regmean" to methods' in checked.stderr
    sent = [line for line in federation.printed("bert").splitlines() if "refused-by" in line]
    assert not any("masked input" in line for line in sent)
    # As the hint says: mend it, then the same job again.
    federation.edit_policy("bert", {"methods": ["average", "regmean"]})
    done = federation.merge(job=job)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nobody_joins_a_plan_that_has_expired(federation: Deployment) -> None:
    """A job that began more than its days ago; the coordinator's machine was off since."""
    file = federation.new_job("expired")
    settings = JobSettings.read(file)
    plan = write_plan(federation.server, settings).plan
    JobFolder(federation.server.jobs / "expired" / "state", plan, round(time.time()) - 1)
    done = federation.merge(job=file)
    assert done.returncode == 6, done.stdout + done.stderr
    assert "PolicyRefused: an expired manifest" in done.stderr
    for name in federation.names:
        assert "job 'expired': masked input" not in federation.printed(name)


def test_a_job_waits_for_the_person_who_approves_and_ends_if_that_person_refuses(
    federation: Deployment,
) -> None:
    home = str(federation.owners["cleo"].folder)
    federation.edit_policy("cleo", {"approve": "ask"})
    try:
        (federation.folder / "merge.out").write_text("")
        federation.start_merge(federation.new_job("asks"))
        federation.wait_for("merge", "waits for a person's approval")
        assert "asked" in federation.run("client", "jobs", home).stdout
        said = federation.run("client", "approve", home, "asks", answer="y\n")
        assert said.returncode == 0, said.stderr
        assert "Gram matrices" in said.stdout
        merge = federation.running["merge"]
        wait_until(lambda: merge.poll() is not None, "the end of the job")
        assert merge.returncode == 0, federation.printed("merge")

        (federation.folder / "merge.out").write_text("")
        federation.start_merge(federation.new_job("asks-in-vain"))
        federation.wait_for("merge", "waits for a person's approval")
        assert federation.run("client", "refuse", home, "asks-in-vain").returncode == 0
        merge = federation.running["merge"]
        wait_until(lambda: merge.poll() is not None, "the end of the job")
        assert merge.returncode == 6
        assert "PolicyRefused" in federation.printed("merge")
    finally:
        federation.edit_policy("cleo", {"approve": "automatic"})
