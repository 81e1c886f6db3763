"""The runbook's commands exist, the policy's example is one, and every threat has its test."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from blindmerge.cli import app
from blindmerge_client.cli import register as register_client
from blindmerge_client.config import Home, Policy
from blindmerge_server.cli import register as register_server
from support.tree import ROOT

DEPLOY = ROOT / "deploy"
RUNBOOK = (DEPLOY / "RUNBOOK.md").read_text()
THREATS = (DEPLOY / "THREAT_MODEL.md").read_text()
SPEC = (ROOT / "common/blindmerge/secagg/SPEC.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", RUNBOOK, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_runbook_exists_with_its_options(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "tar":
        return
    assert program == "blindmerge"
    for register in (register_client, register_server):
        register(app)
    found = typer.main.get_command(app)
    context = found.make_context("blindmerge", [], resilient_parsing=True)
    while words and hasattr(found, "get_command"):
        if words[0].startswith("-"):
            assert words[0] in {option for each in found.params for option in each.opts}
            return
        found = found.get_command(context, words.pop(0))
        assert found is not None, command
    # Raises where an argument is missing or an option is unknown; runs nothing.
    found.make_context(command, words)


def test_the_first_federation_takes_ten_commands() -> None:
    section = RUNBOOK.split("## The first federation")[1].split("\n## ")[0]
    assert re.findall(r"^(\d+)\. ", section, re.M) == [str(n) for n in range(1, 11)]


def test_the_example_of_a_policy_is_one_and_has_every_key(tmp_path: Path) -> None:
    home = Home(tmp_path)
    text = (DEPLOY / "policy.example.toml").read_text()
    home.policy_file.write_text(text)
    policy = home.policy()
    assert policy.model_fields_set == set(Policy.model_fields)
    # Nothing in it is laxer than what a person gets who writes nothing.
    assert policy.approve == "ask"
    assert policy.embeddings == "average"
    assert policy.least_owners >= Policy().least_owners
    assert policy.max_jobs <= Policy().max_jobs


def _tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_line_of_the_threat_model_names_a_test_that_exists() -> None:
    lines = [line for line in THREATS.splitlines() if re.match(r"\| (?!what\b|wants\b)\w", line)]
    assert len(lines) >= 15
    for line in lines:
        found = re.search(r"`(tests/\S+?\.py)(?:::(\w+))?` \|$", line)
        assert found is not None, line
        path, name = ROOT / found[1], found[2]
        assert path.is_file(), line
        assert name is None or name in _tests(path), line


def test_every_attack_is_a_line_of_the_threat_model_or_of_the_table_that_it_takes_over() -> None:
    attacks = {path.name for path in (ROOT / "tests/attacks").glob("test_*.py")}
    named = set(re.findall(r"test_\w+\.py", THREATS + SPEC.split("## 2.")[0]))
    assert attacks <= named, f"not named: {sorted(attacks - named)}"
    assert all((ROOT / "tests/attacks" / name).exists() for name in named & attacks)


@pytest.mark.parametrize("document", ["RUNBOOK.md", "THREAT_MODEL.md"])
def test_links_lead_to_files(document: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (DEPLOY / document).read_text()):
        assert (DEPLOY / target).exists(), target
