"""README's and the runbook's commands, typed by three hospitals and a coordinator. Runs in CI too.

Each is a host of its own, known by the names in the documents; the files that people send each
other are copied, and what they would write into their settings is written.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint
from support.deployment import set_keys
from support.material import SPLITS, pico_material
from support.network import Network, why_no_network
from support.processes import environment, wait_until
from support.tree import ROOT

README, RUNBOOK = (ROOT / "README.md").read_text(), (ROOT / "deploy" / "RUNBOOK.md").read_text()
HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
STAY = ("blindmerge client run ", "blindmerge server run ", "blindmerge server merge ")
_STOP_S = 30


def _commands(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = (line.split("#")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


def _section(document: str, title: str) -> list[str]:
    return _commands(document.split(f"\n## {title}")[1].split("\n## ")[0])


OWNER, COORDINATOR = _section(README, "Owner"), _section(README, "Coordinator")
FIRST = _section(RUNBOOK, "The first federation")
LATER = _commands(RUNBOOK)[len(FIRST) :]


def test_the_ten_commands_of_the_runbook_are_those_of_the_readme() -> None:
    assert sorted(FIRST) == sorted(OWNER + COORDINATOR)


class _Desk:
    """Where everybody types; all folders lie beside each other."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder = folder
        self.typed: list[str] = []
        self.running: dict[str, subprocess.Popen[str]] = {}
        self._network = network

    def type(self, command: str, answer: str = "", code: int = 0) -> str:
        """Types a command to its end, which has to be with this exit code; what it printed."""
        self.typed.append(command)
        done = subprocess.run(
            self._words(command),
            input=answer,
            capture_output=True,
            text=True,
            timeout=240,
            cwd=self.folder,
            env=environment(),
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def leave_running(self, command: str) -> None:
        """Types a command that stays, in a terminal of its own."""
        self.typed.append(command)
        with self._screen(command).open("w") as screen:
            self.running[command] = subprocess.Popen(
                self._words(command),
                stdout=screen,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                text=True,
                env=environment(),
            )

    def wait_for(self, command: str, text: str) -> None:
        """Until a command that was left running has printed a text."""
        screen = self._screen(command)
        process = self.running[command]

        def is_there() -> bool:
            return text in screen.read_text() or process.poll() is not None

        wait_until(is_there, f"'{text}' of '{command}'")
        assert text in screen.read_text(), screen.read_text()

    def end(self, command: str) -> str:
        """Until it ends by itself, and well; what it printed."""
        process, screen = self.running[command], self._screen(command)
        wait_until(lambda: process.poll() is not None, f"the end of '{command}'")
        assert process.returncode == 0, screen.read_text()
        return screen.read_text()

    def close(self) -> None:
        """Ends what still runs."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _screen(self, command: str) -> Path:
        return self.folder / f"{command.replace('/', '-')}.out"

    def _words(self, command: str) -> list[str]:
        program, *words = shlex.split(command)
        hospital = next((word for word in words if word in HOSPITALS), "server")
        host = hospital if "client" in words else "server"
        known = {"blindmerge": [sys.executable, "-m", "blindmerge"]}.get(program, [program])
        return [*self._network.inside(host), *known, *words]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[_Desk]:
    if why := why_no_network():
        pytest.skip(why)
    with (
        Network("server", *HOSPITALS, names={"fl.example.org": "server"}) as network,
        ExitStack() as stack,
    ):
        made = _Desk(tmp_path, network)
        stack.callback(made.close)
        yield made


def _filled_in(folder: Path, hospital: str, base: Path, roster: str, key: str) -> None:
    """What an owner writes into its two files."""
    home = folder / hospital
    for file in ("server/tls/ca.crt", "server/roster"):
        shutil.copy(folder / file, home)
    files = {split: f"{split}.jsonl" for split in SPLITS}
    set_keys(home / "client.toml", {"base": str(base), "model": "own", **files})
    policy = {
        "roster": roster,
        "base_models": [Checkpoint(base).sha256],
        "methods": ["regmean"],
        "layers": ["*"],
        "least_owners": 3,
        "rows_factor": 1.0,
        "coordinator": key,
        "approve": "ask" if hospital == HOSPITALS[0] else "automatic",
    }
    set_keys(home / "policy.toml", policy)
    text = (home / "policy.toml").read_text()
    (home / "policy.toml").write_text(
        text.replace("# expires = 2027-01-31", "expires = 9999-12-31")
    )


def _everywhere(command: str) -> list[str]:
    """A command of hospital A, and what the others type."""
    return [command.replace("hospital-a", hospital) for hospital in HOSPITALS]


def test_the_walk_throughs_lead_to_an_accepted_model(desk: _Desk) -> None:
    folder = desk.folder
    init, check, run, approve, evaluate, accept = OWNER
    server_init, add_owner, roster, server_run, plan, merge = COORDINATOR
    material = pico_material(folder, HOSPITALS)

    key = re.findall(r"^ +([0-9a-f]{64})$", desk.type(server_init), re.M)[-1]
    for number, command in enumerate(_everywhere(init)):
        desk.type(command)
        material.equip(number, folder / HOSPITALS[number])
    for command in _everywhere(add_owner):
        desk.type(command)
    pinned = re.findall(r"^ +([0-9a-f]{64})$", desk.type(roster), re.M)[-1]
    for hospital in HOSPITALS:
        _filled_in(folder, hospital, material.base, pinned, key)
    job = folder / "server" / "job.toml"
    set_keys(job, {"base": str(material.base), "max_length": material.max_length})
    text = job.read_text()
    job.write_text(text.replace('{ name = "regmean" }', '{ name = "regmean", rows_factor = 1.0 }'))

    desk.leave_running(server_run)
    desk.type(plan)
    shutil.copy(folder / "server/plans/my-job-1.plan", folder)
    assert "Gram matrices" in desk.type(check)
    for command in _everywhere(run):
        desk.leave_running(command)
    desk.leave_running(merge)
    desk.wait_for(run, "waits for a person's approval")
    assert "They leave under masks" in desk.type(approve, answer="y\n")
    assert "masks on" in desk.end(merge)
    done = folder / "server" / "jobs" / "my-job-1"
    report = json.loads((done / "report.json").read_text())
    assert [owner["missing"] for owner in report["owners"]] == [None] * 3
    AutoModelForSequenceClassification.from_pretrained(done / "merged")
    for stays in _everywhere(run):
        desk.wait_for(stays, "job 'my-job-1' is done")
    assert "accuracy" in desk.type(evaluate)
    desk.type(accept)
    assert Checkpoint(folder / "hospital-a/current").sha256 == Checkpoint(done / "merged").sha256
    proof = f"{done}/transcripts/sum-001.cbor"
    said = desk.type(f"blindmerge verify-transcript {proof} --roster {pinned}")
    assert "sum of 3 of 3 owners" in said
    assert {*OWNER, *COORDINATOR} <= set(desk.typed)

    for command in LATER:  # what the runbook has for the time after the first job
        refuses = command.startswith("blindmerge client refuse")
        said = desk.type(command, code=2 if refuses else 0)
        assert "no job" in said or not refuses
    assert "hospital-b" not in desk.type(roster)
