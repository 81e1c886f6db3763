"""A federation as its people would set it up: folders made by `init`, keys exchanged, files edited.

with Deployment(tmp_path, names=("anna", "bert", "cleo")) as federation:
    federation.start("server")
    for name in federation.names:
        federation.start(name)
    merged = federation.merge()
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from blindmerge.checkpoint import Checkpoint
from blindmerge.secagg.secret import OsRandomness
from blindmerge_client.config import Home as OwnerHome
from blindmerge_client.setup import make_home as make_owner
from blindmerge_server.config import Home as ServerHome
from blindmerge_server.config import OwnerKeys
from support.federations import json_lines
from support.jobs import LABELS, noisy
from support.pico import pico_encoder, pico_examples

__all__ = ["Deployment", "free_port"]

_STOP_S = 30
_EXAMPLES = 120


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Deployment:
    """One coordinator and some owners, each with a folder; processes end with the block.

    host: where owners find the server.   method: of the job.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = ("anna", "bert", "cleo"),
        host: str = "127.0.0.1",
        method: str = '{ name = "regmean", rows_factor = 1.0 }',
    ) -> None:
        self.folder = folder
        self.names = tuple(names)
        self.port = free_port()
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.base = pico_encoder(folder / "base", "bert", labels=LABELS)
        self.server = ServerHome(folder / "server")
        self.owners = {name: OwnerHome(folder / name) for name in names}
        self._set_up(host, method)

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

    @property
    def job(self) -> Path:
        """The job's TOML file."""
        return self.server.folder / "job-1.toml"

    def words(self, who: str) -> list[str]:
        """The command that somebody runs."""
        words = ["server", "run"] if who == "server" else ["client", "run"]
        return [*words, str(self.folder / who)]

    def start(self, who: str) -> "subprocess.Popen[str]":
        """Starts the server, or an owner by name; what they print goes to a file."""
        out = (self.folder / f"{who}.out").open("a")
        self.running[who] = subprocess.Popen(
            [sys.executable, "-m", "blindmerge", *self.words(who)],
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        return self.running[who]

    def run(self, *words: str, timeout_s: float = 300) -> "subprocess.CompletedProcess[str]":
        """Runs a command of `blindmerge` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "blindmerge", *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment(),
            check=False,
        )

    def merge(self, timeout_s: float = 300) -> "subprocess.CompletedProcess[str]":
        """The coordinator's `server merge`."""
        return self.run(
            "server", "merge", str(self.server.folder), str(self.job), timeout_s=timeout_s
        )

    def printed(self, who: str) -> str:
        """What a started process has printed."""
        return (self.folder / f"{who}.out").read_text()

    def edit_policy(self, name: str, lines: Mapping[str, object]) -> None:
        """Sets keys of an owner's policy."""
        _set(self.owners[name].policy_file, lines)

    def _set_up(self, host: str, method: str) -> None:
        hosts = ["--host", host] if host == "127.0.0.1" else ["--host", host, "--host", "127.0.0.1"]
        made = self.run("server", "init", str(self.server.folder), *hosts, "--port", str(self.port))
        assert made.returncode == 0, made.stderr
        for name, home in self.owners.items():
            make_owner(home.folder, name, OsRandomness())
            self.server.add(OwnerKeys.read(home.public_keys_file))
        for number, name in enumerate(self.names):
            self._equip(number, name, f"{host}:{self.port}")
        text = self.server.job_template.read_text()
        text = re.sub(r"(?m)^base = .*", f"base = {json.dumps(str(self.base))}", text)
        text = re.sub(r"(?m)^method = .*", f"method = {method}", text)
        text = re.sub(r"(?m)^max_length = .*", "max_length = 16", text)
        self.job.write_text(text)

    def _equip(self, number: int, name: str, address: str) -> None:
        """Model, data, roster and files of one owner, who trusts the coordinator."""
        home = self.owners[name]
        noisy(self.base, home.folder / "own", seed=number)
        for offset, split in enumerate(("train", "validation")):
            examples = pico_examples(_EXAMPLES, seed=10 * number + offset)
            (home.folder / f"{split}.jsonl").write_text(json_lines(examples, LABELS))
        shutil.copy(self.server.authority_file, home.folder / "ca.crt")
        shutil.copy(self.server.roster_file, home.roster_file)
        settings = {
            "base": str(self.base),
            "model": "own",
            "train": "train.jsonl",
            "validation": "validation.jsonl",
            "server": address,
        }
        _set(home.client_file, settings)
        policy: dict[str, object] = {
            "roster": self.server.roster().sha256.hex(),
            "base_models": [Checkpoint(self.base).sha256],
            "methods": ["regmean", "progressive", "average"],
            "layers": ["*"],
            "least_owners": 3,
            "rows_factor": 1.0,
            "approve": "automatic",
        }
        _set(home.policy_file, policy)
        text = home.policy_file.read_text().replace(
            "# expires = 2027-01-31", "expires = 9999-12-31"
        )
        key = self.server.identity().public.hex()
        home.policy_file.write_text(text.replace('# coordinator = "..."', f'coordinator = "{key}"'))


def environment() -> dict[str, str]:
    """Of a process that finds the packages where this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _set(file: Path, values: Mapping[str, object]) -> None:
    """Sets keys of a TOML file that stand in it, perhaps as comments."""
    lines, left = file.read_text().splitlines(), dict(values)
    for number, line in enumerate(lines):
        key = line.removeprefix("# ").partition(" = ")[0]
        if key in left:
            lines[number] = f"{key} = {json.dumps(left.pop(key))}"
    assert not left, f"not in {file.name}: {sorted(left)}"
    file.write_text("\n".join(lines) + "\n")
