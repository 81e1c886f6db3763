"""`client ledger show` and `verify`: what was spent, and whether somebody touched the book."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from blindmerge.errors import BlindmergeError, ConfigInvalid, LedgerTampered
from blindmerge.privacy.accountant import Cost, Training, epsilon_of, rho_for
from blindmerge_client.commands import client
from blindmerge_client.config import Home
from blindmerge_client.ledger import Budget, Ledger

DATASET = "d" * 64
NOW = 1_800_000_000
BUDGET = Budget(100.0, 1e-6)
TRAINING = Training(multiplier=2.0, rate=0.01, steps=100)


def writes(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def release(home: Home, subject: str, rho: float, now: int) -> None:
    home.ledger(DATASET).release(
        DATASET,
        subject,
        cost=Cost(Fraction(rho)),
        budget=BUDGET,
        now=now,
        make=writes(subject.encode()),
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With a ledger of two releases."""
    home = Home(tmp_path)
    Ledger.create(home.ledgers / DATASET, DATASET, now=NOW)
    for number, rho in enumerate((0.01, 0.02)):
        release(home, f"job-{number}:{'a' * 64}", rho, NOW + 60 * number)
    return home


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(client, ["ledger", *map(str, words)])


def failure(*words: str | Path) -> BlindmergeError:
    error = run(*words).exception
    assert isinstance(error, BlindmergeError), error
    return error


def test_every_charge_is_shown_and_what_they_come_to(home: Home) -> None:
    out = run("show", home.folder, "--delta", "1e-5").output
    for rho in (0.01, 0.02):
        assert f"{epsilon_of(rho, 1e-5):.3g}" in out
    assert f"spent: epsilon {epsilon_of(0.03, 1e-5):.3g} at delta 1e-05" in out
    assert f"head:  {home.ledger(DATASET).read(DATASET).head.hex()}" in out
    assert "job-0 (aaaaaaaa)" in out
    assert "2027-01-15 08:01  charged" in out
    assert max(map(len, out.splitlines())) <= 80


def test_an_untouched_ledger_is_verified_with_any_head_that_was_noted(home: Home) -> None:
    result = run("verify", home.folder)
    assert result.exit_code == 0
    assert f"ledger of examples {DATASET[:12]}: 5 entries hold together" in result.output
    heads = home.ledger(DATASET).read(DATASET).heads
    assert len(set(heads)) == 5
    for head in heads:
        assert "is part of it" in run("verify", home.folder, "--head", head.hex()).output
    assert isinstance(failure("verify", home.folder, "--head", "0" * 64), LedgerTampered)
    assert isinstance(failure("verify", home.folder, "--head", "xyz"), ConfigInvalid)


def test_both_files_rolled_back_are_seen_with_the_head_that_was_noted(home: Home) -> None:
    folder = home.ledgers / DATASET
    before = {name: (folder / name).read_bytes() for name in ("entries", "head")}
    release(home, "job-2", 1.0, NOW + 600)
    noted = home.ledger(DATASET).read(DATASET).head.hex()
    for name, data in before.items():
        (folder / name).write_bytes(data)
    assert run("verify", home.folder).exit_code == 0, "nothing else can see it"
    error = failure("verify", home.folder, "--head", noted)
    assert "no ledger here knows the head" in error.message


@pytest.mark.parametrize("what", ["entries", "head", "release", "release gone"])
def test_what_was_touched_is_refused(home: Home, what: str) -> None:
    folder = home.ledgers / DATASET
    first = sorted((folder / "releases").iterdir())[0]
    path = first if what.startswith("release") else folder / what
    if what == "release gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert isinstance(failure("verify", home.folder), LedgerTampered)
    assert isinstance(failure("show", home.folder), LedgerTampered)


def test_half_a_release_of_a_process_that_died_is_no_tampering(home: Home) -> None:
    releases = home.ledgers / DATASET / "releases"
    (releases / "drawn").write_bytes(b"half")
    (releases / ("b" * 64)).write_bytes(b"renamed, and not in the book yet")
    assert run("verify", home.folder).exit_code == 0


def test_a_training_has_no_release_to_check(home: Home) -> None:
    home.ledger(DATASET).train(
        DATASET,
        "training-1",
        cost=Cost(trainings=(TRAINING,)),
        budget=BUDGET,
        now=NOW + 999,
        model="ab" * 32,
    )
    assert run("verify", home.folder).exit_code == 0
    assert "training-1" in run("show", home.folder).output


def test_without_a_ledger_it_says_when_there_will_be_one(tmp_path: Path) -> None:
    error = failure("show", tmp_path)
    assert "there is no ledger" in error.message
    assert "noise" in error.hint


def test_what_the_policy_leaves_is_shown_and_fits(home: Home) -> None:
    home.policy_file.write_text("max_epsilon = 2.0\ndelta = 1e-5\n")
    out = run("show", home.folder).output
    found = re.search(r"left:  one release of epsilon ([\d.]+), by max_epsilon 2 at", out)
    assert found is not None, out
    spent = home.ledger(DATASET).read(DATASET).spent
    left = Cost(Fraction(rho_for(float(found[1]), 1e-5)))
    assert (spent + left).epsilon(1e-5) == pytest.approx(2.0, abs=0.01)
    home.policy_file.write_text("max_epsilon = 0.1\n")
    assert "left:  one release of epsilon 0," in run("show", home.folder).output
