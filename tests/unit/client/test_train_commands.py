"""`client train`: what a training with noise costs is charged, and refused before it begins."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import BudgetExhausted, ConfigInvalid, LedgerTampered
from blindmerge_client.commands import client
from support.deployment import Deployment


def run(*words: object) -> Result:
    return CliRunner().invoke(client, [str(word) for word in words])


def train(home: Path, out: Path, *words: object, epsilon: float = 4.0) -> Result:
    public = ("--epsilon", epsilon, "--examples", 1000, "--max-length", 16)
    return run("train", home, out, *public, "--epochs", 1, "--batch-size", 500, *words)


@pytest.fixture
def federation(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


@pytest.fixture
def home(federation: Deployment) -> Path:
    """With an open ledger and a budget of epsilon 5."""
    name = federation.names[0]
    federation.edit_policy(name, {"max_epsilon": 5.0})
    folder = federation.owners[name].folder
    assert run("ledger", "open", folder).exit_code == 0
    return folder


def test_a_training_is_charged_before_its_model_is_there(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = train(home, out)
    assert result.exit_code == 0, result.exception
    shown = run("ledger", "show", home).output
    assert f"training ({Checkpoint(out).sha256[:8]})" in shown
    assert "spent: epsilon 4 at delta 1e-06" in shown
    # What is left does not pay a second one, and nothing is trained.
    second = train(home, tmp_path / "second")
    assert isinstance(second.exception, BudgetExhausted)
    assert "step" not in second.output
    assert not (tmp_path / "second").exists()
    assert run("ledger", "show", home).output == shown


def test_a_training_needs_a_ledger_that_a_person_opened(
    federation: Deployment, tmp_path: Path
) -> None:
    name = federation.names[0]
    federation.edit_policy(name, {"max_epsilon": 5.0})
    result = train(federation.owners[name].folder, tmp_path / "model")
    assert isinstance(result.exception, LedgerTampered)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (("--examples", 2), "examples"),
        (("--person-examples", 2), "has no column 'person'"),
    ],
)
def test_what_does_not_fit_is_refused_and_costs_nothing(
    home: Path, tmp_path: Path, words: tuple[object, ...], mistake: str
) -> None:
    before = run("ledger", "show", home).output
    result = train(home, tmp_path / "model", *words)
    assert isinstance(result.exception, ConfigInvalid)
    assert mistake in result.exception.message
    assert not (tmp_path / "model").exists()
    assert run("ledger", "show", home).output == before


def test_a_model_is_never_overwritten(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    result = train(home, tmp_path / "model")
    assert isinstance(result.exception, ConfigInvalid)
    assert "exists" in result.exception.message
