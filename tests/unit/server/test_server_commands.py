"""A coordinator's commands: what a person sees at width 80, and what each changes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from blindmerge.errors import BlindmergeError, ConfigInvalid, Interrupted
from blindmerge.secagg.secret import OsRandomness
from blindmerge_client.setup import make_home as make_owner
from blindmerge_server import merging, overview
from blindmerge_server.commands import server
from blindmerge_server.config import Home
from support.deployment import Deployment

WIDTH = 80


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(server, list(map(str, words)))


def shown(*words: str | Path) -> str:
    """What a command that works prints; every line fits, but for paths."""
    result = run(*words)
    assert result.exit_code == 0, result.exception
    for line in result.output.splitlines():
        assert len(line) <= WIDTH or "/" in line, line
    return str(result.output)


def failure(*words: str | Path) -> BlindmergeError:
    error = run(*words).exception
    assert isinstance(error, BlindmergeError), error
    return error


@pytest.fixture
def federation(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


def test_init_prints_what_owners_need_and_no_secret(tmp_path: Path) -> None:
    out = shown("init", tmp_path / "s", "--host", "fl.example.org", "--host", "10.0.0.7")
    home = Home(tmp_path / "s")
    assert "fl.example.org:9092, 10.0.0.7:9092" in out
    assert home.identity().public.hex() in out
    assert str(home.authority_file) in out
    for secret in (home.identity().seed, home.control()):
        assert secret.reveal().hex() not in out
    before = home.identity_file.read_bytes()
    assert "never overwritten" in failure("init", home.folder, "--host", "x.org").message
    assert home.identity_file.read_bytes() == before


def test_owners_come_and_go(federation: Deployment, tmp_path: Path) -> None:
    folder = federation.server.folder
    keys = make_owner(tmp_path / "dora", "dora", OsRandomness()).public_keys_file
    assert "which has 4 owner(s) now" in shown("add-owner", folder, keys)
    out = shown("roster", folder)
    for member in federation.server.roster().members:
        assert f"{member.name}\n  {member.public.hex()}" in out
    assert federation.server.roster().sha256.hex() in out
    assert "which has 3 owner(s) now" in shown("remove-owner", folder, "dora")
    assert "dora" not in shown("roster", folder)
    assert isinstance(failure("remove-owner", folder, "dora"), ConfigInvalid)


def test_a_plan_is_written_shown_and_listed(federation: Deployment) -> None:
    folder = federation.server.folder
    assert "no plan yet" in shown("jobs", folder)
    out = shown("plan", folder, federation.job)
    signed = federation.signed()
    assert signed.plan.sha256 in out
    assert "3, of whom 3 must stay to the end" in out
    row = next(line for line in shown("jobs", folder).splitlines() if line.startswith("my-job-1"))
    assert row.split() == ["my-job-1", signed.plan.sha256[:8], "regmean", "planned"]


def test_status_says_who_is_there(federation: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def node(name: str, status: str, on: str = "", off: str = "") -> Any:
        return SimpleNamespace(
            name=name, status=status, last_activated_at=on, last_deactivated_at=off
        )

    at = "2027-01-31T12:30:45.678+00:00"
    known = [
        node("anna", "online", at),
        node("bert", "offline", at, at),
        node("cleo", "registered"),
    ]
    monkeypatch.setattr(overview, "nodes", lambda _: known)
    lines = shown("status", federation.server.folder).splitlines()
    assert lines[0] == f"the server answers at 127.0.0.1:{federation.port}"
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[2:] if line.strip()}
    assert rows["anna"] == "connected since 2027-01-31 12:30"
    assert rows["bert"] == "gone since 2027-01-31 12:30"
    assert rows["cleo"] == "was never here"


def test_a_merge_that_a_person_stops_says_how_it_goes_on(
    federation: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "run_merge", stopped)
    error = failure("merge", federation.server.folder, federation.job)
    assert isinstance(error, Interrupted)
    assert "run the same command again" in error.hint


@pytest.mark.parametrize("words", [["roster"], ["run"], ["jobs"], ["status"]], ids=lambda w: w[0])
def test_a_folder_that_is_none_is_told(tmp_path: Path, words: list[str]) -> None:
    error = failure(*words, tmp_path / "nowhere")
    assert isinstance(error, ConfigInvalid)
    assert "nowhere" in error.message


def test_the_list_of_commands_tells_what_each_does_in_a_whole_sentence() -> None:
    lines = run("--help").output.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert commands[0].split()[0] == "init"
    assert all(line.endswith(".") and not line.endswith("...") for line in commands), commands


def test_a_certificate_is_renewed_and_its_end_is_shown(federation: Deployment) -> None:
    folder, before = federation.server.folder, federation.server.certificate_file.read_bytes()
    assert "owners need do nothing" in shown("renew", folder)
    assert federation.server.certificate_file.read_bytes() != before
    federation.server.authority_key_file.unlink()
    assert "ca.key: cannot be read" in failure("renew", folder).message
