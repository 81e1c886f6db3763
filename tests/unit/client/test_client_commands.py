"""An owner's commands: what a person sees at width 80, and what each changes."""

import os
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from blindmerge.errors import BlindmergeError, ConfigInvalid, PolicyRefused
from blindmerge_client.commands import client
from blindmerge_client.config import Home
from blindmerge_client.guard import Guard
from blindmerge_client.jobs import Jobs
from support.deployment import Deployment
from support.guards import run_guards

WIDTH = 80


def run(*words: str | Path, typed: str = "") -> Result:
    return CliRunner().invoke(client, list(map(str, words)), input=typed)


def shown(*words: str | Path, typed: str = "") -> str:
    """What a command that works prints; every line fits, but for paths and hashes."""
    result = run(*words, typed=typed)
    assert result.exit_code == 0, result.exception
    for line in result.output.splitlines():
        assert len(line) <= WIDTH or "/" in line, line
    return str(result.output)


def failure(*words: str | Path, typed: str = "") -> BlindmergeError:
    error = run(*words, typed=typed).exception
    assert isinstance(error, BlindmergeError), error
    return error


@pytest.fixture
def federation(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


@pytest.fixture
def home(federation: Deployment) -> Home:
    return federation.owners["anna"]


def plan_file(federation: Deployment) -> Path:
    file = federation.folder / "the.plan"
    file.write_bytes(federation.signed().encode())
    return file


def test_init_prints_what_to_hand_over_and_no_secret(tmp_path: Path) -> None:
    out = shown("init", tmp_path / "a", "--name", "hospital-a")
    home = Home(tmp_path / "a")
    identity = home.identity("hospital-a")
    assert str(home.public_keys_file) in out
    assert identity.public.hex() in out
    assert identity.seed.reveal().hex() not in out
    assert "blindmerge client run" in out
    before = {path: path.read_bytes() for path in home.folder.iterdir() if path.is_file()}
    assert "keys are never overwritten" in failure("init", home.folder, "--name", "b").message
    assert {path: path.read_bytes() for path in home.folder.iterdir() if path.is_file()} == before


def test_a_plan_is_compared_line_by_line_and_then_told_in_words(
    federation: Deployment, home: Home
) -> None:
    out = shown("policy", "check", home.folder, plan_file(federation))
    lines = out.splitlines()
    verdicts = [line.split()[:2] for line in lines if line.startswith(("yes ", "NO "))]
    assert {rule for _, rule in verdicts} >= {"coordinators", "roster", "max_jobs", "layers"}
    assert all(verdict == "yes" for verdict, _ in verdicts)
    assert "anna, bert, cleo" in out
    assert "They leave under masks." in out
    assert Jobs(home.jobs).all() == (), "to look is not to answer"


def test_all_rules_that_refuse_are_told_with_what_to_change(
    federation: Deployment, home: Home
) -> None:
    federation.edit_policy("anna", {"methods": ["average"], "least_examples": 1000})
    file = plan_file(federation)
    error = failure("policy", "check", home.folder, file)
    assert isinstance(error, PolicyRefused)
    assert error.message == "2 rule(s) refuse the plan"
    assert 'add "regmean" to methods' in error.hint
    assert "lower least_examples" in error.hint
    out = run("policy", "check", home.folder, file).output
    assert [line.split()[1] for line in out.splitlines() if line.startswith("NO ")] == [
        "methods",
        "least_examples",
    ]


@pytest.mark.parametrize("content", [b"", b"x", b"\xa0" * 100])
def test_what_is_no_plan_is_refused(home: Home, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "no.plan").write_bytes(content)
    error = failure("policy", "check", home.folder, tmp_path / "no.plan")
    assert isinstance(error, ConfigInvalid)
    assert "is no signed plan" in error.message
    assert "blindmerge server plan" in error.hint


def test_a_person_approves_after_reading_what_leaves(federation: Deployment, home: Home) -> None:
    assert "no job yet" in shown("jobs", home.folder)
    signed = federation.signed()
    Jobs(home.jobs).ask(signed, federation.server.roster(), "d" * 64)
    assert f"approve {home.folder} my-job-1" in shown("jobs", home.folder)
    error = failure("approve", home.folder, typed="n\n")
    assert error.message == "nothing was approved"
    assert Jobs(home.jobs).all()[0].state == "asked"
    out = shown("approve", home.folder, "my-job-1", typed="y\n")
    assert out.index("They leave under masks.") < out.index("begin? [y/N]")
    assert Jobs(home.jobs).all()[0].state == "approved"
    shown("refuse", home.folder)
    assert Jobs(home.jobs).all()[0].state == "refused"
    shown("approve", home.folder, signed.plan.sha256[:6], typed="y\n")
    assert Jobs(home.jobs).all()[0].state == "approved"


def test_who_approves_is_warned_of_almost_the_same_owners(tmp_path: Path) -> None:
    federation = Deployment(tmp_path, ("anna", "bert", "cleo", "dora"))
    home, jobs = federation.owners["anna"], Jobs(federation.owners["anna"].jobs)
    first = federation.signed()
    jobs.ask(first, federation.server.roster(), "d" * 64)
    jobs.move(first.plan, "approved")
    jobs.move(first.plan, "running")
    federation.server.remove("dora")
    jobs.ask(federation.signed(job="second"), federation.server.roster(), "d" * 64)
    out = " ".join(run("approve", home.folder, typed="n\n").output.split())
    assert "see the sum over those who came or went: dora." in out


def test_the_merged_model_is_compared_and_taken_or_not(federation: Deployment, home: Home) -> None:
    assert "no job is done" in failure("evaluate", home.folder).message
    guards = {name: Guard(each) for name, each in federation.owners.items()}
    run_guards(federation, guards, federation.signed())
    assert f"evaluate {home.folder} my-job-1" in shown("jobs", home.folder)
    out = shown("evaluate", home.folder)
    rows = [line.split("  ")[0] for line in out.splitlines()[:3]]
    assert rows == ["model", "your own", "merged"]
    assert "120 validation examples" in out
    link, merged = home.folder / "current", home.jobs / federation.signed().plan.sha256 / "merged"
    choices: list[tuple[str, Path]] = [("accept", merged), ("keep", home.client().model)]
    for word, folder in choices:
        assert str(folder) in shown(word, home.folder)
        assert link.resolve() == folder.resolve()
        assert os.path.islink(link)
        assert "no job is" in failure(word, home.folder).message
    assert (home.client().model / "model.safetensors").exists()
    shown("accept", home.folder)
    assert link.resolve() == merged.resolve()


@pytest.mark.parametrize(
    "words",
    [["jobs"], ["run"], ["gateway"], ["node"], ["evaluate"], ["accept"], ["approve"]],
    ids=lambda words: words[0],
)
def test_a_folder_that_is_none_is_told(tmp_path: Path, words: list[str]) -> None:
    result = run(*words, tmp_path / "nowhere")
    if words == ["jobs"]:
        assert "no job yet" in result.output
    else:
        assert isinstance(result.exception, BlindmergeError), result.exception
        assert "nowhere" in result.exception.message or "no job" in result.exception.message


@pytest.mark.parametrize(
    ("group", "first"), [((), "init"), (("policy",), "check"), (("ledger",), "show")]
)
def test_lists_of_commands_tell_what_each_does_in_a_whole_sentence(
    group: tuple[str, ...], first: str
) -> None:
    lines = run(*group, "--help").output.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert commands[0].split()[0] == first
    assert all(line.endswith(".") and not line.endswith("...") for line in commands), commands
