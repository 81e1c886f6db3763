"""A job with noise between guards: who may take part, what is charged, and what comes out."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from blindmerge.errors import JobAborted, PolicyRefused
from blindmerge.manifest import Manifest
from blindmerge.privacy.accountant import epsilon_of, rho_of
from blindmerge.privacy.terms import gram_groups
from blindmerge_client.commands import client
from blindmerge_client.guard import Guard
from support.deployment import Deployment
from support.guards import run_guards

EPSILON = epsilon_of(rho_of(1.0), 1e-6)


def noise_for(manifest: Manifest) -> dict[str, Any]:
    weights = (1.0,) * len(gram_groups(manifest))
    grams = {"multiplier": 1.0, "clip": 10.0, "weights": weights}
    return {"mode": "statistics", "epsilon": EPSILON, "delta": 1e-6, "grams": grams}


@pytest.fixture
def federation(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


def command(*words: object) -> str:
    result = CliRunner().invoke(client, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_job_with_noise_from_the_first_question_to_the_merged_model(
    federation: Deployment,
) -> None:
    noise = noise_for(federation.signed().plan.manifest)
    signed = federation.signed(noise=noise, examples=200, max_length=16)
    guards = {name: Guard(home) for name, home in federation.owners.items()}
    first = federation.names[0]
    home = federation.owners[first].folder
    with pytest.raises(PolicyRefused, match="which nobody opened"):
        guards[first].answer(signed, None, ())
    for owner in federation.owners.values():
        assert "nothing is spent" in command("ledger", "open", owner.folder)
    with pytest.raises(PolicyRefused, match=r"asked epsilon .* allowed 0 at delta"):
        guards[first].answer(signed, None, ())
    for name in federation.names:
        federation.edit_policy(name, {"max_epsilon": 1.1 * EPSILON, "require": ["masks", "noise"]})
    merge = run_guards(federation, guards, signed)
    assert not merge.record.dropped
    shown = command("ledger", "show", home)
    assert f"spent: epsilon {EPSILON:.3g} at delta 1e-06" in shown
    assert shown.count("charged") == 1
    # A second job does not fit any more; nobody begins to work on it.
    again = federation.signed(job="again", noise=noise, examples=200, max_length=16)
    federation.edit_policy(first, {"max_jobs": 9})
    with pytest.raises(PolicyRefused, match="rule 'max_epsilon'"):
        guards[first].answer(again, None, ())
    assert not list((home / "jobs" / again.plan.sha256).glob("whitening"))


def test_a_ledger_that_went_missing_is_not_replaced_by_itself(federation: Deployment) -> None:
    first = federation.names[0]
    home = federation.owners[first]
    command("ledger", "open", home.folder)
    federation.edit_policy(first, {"max_epsilon": 100.0})
    signed = federation.signed(noise=noise_for(federation.signed().plan.manifest))
    guard = Guard(home)
    (ledger,) = home.ledgers.iterdir()
    (ledger / "head").unlink()
    with pytest.raises(JobAborted, match="missing or damaged"):
        guard.answer(signed, None, ())
    ledger.rename(home.folder / "elsewhere")
    with pytest.raises(PolicyRefused, match="which nobody opened"):
        guard.answer(signed, None, ())
