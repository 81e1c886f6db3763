"""A federation as its people would set it up: folders made by `init`, keys exchanged, files edited.

with Deployment(tmp_path) as federation:
    federation.start("server", *federation.names)
    merged = federation.merge()
"""

import datetime
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from blindmerge.checkpoint import Checkpoint
from blindmerge.identity import Identity
from blindmerge.plan import Plan
from blindmerge.secagg.secret import OsRandomness
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.config import Home as OwnerHome
from blindmerge_client.setup import make_home as make_owner
from blindmerge_server.config import Home as ServerHome
from blindmerge_server.config import JobSettings, OwnerKeys
from blindmerge_server.planning import make_plan
from blindmerge_server.setup import make_home as make_server
from support.material import SPLITS, Material, pico_material
from support.processes import environment, wait_until

__all__ = ["Deployment", "free_port", "set_keys"]

_STOP_S = 30


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Deployment:
    """One coordinator and some owners, each with a folder; processes end with the block.

    host: where owners find the server.   method: of the job.
    inside: the words before a command of the server or an owner, such as `ip netns exec NAME`.
    material: what the owners have; pico models without.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = ("anna", "bert", "cleo"),
        host: str = "127.0.0.1",
        method: str = '{ name = "regmean", rows_factor = 1.0 }',
        inside: Callable[[str], Sequence[str]] = lambda _: (),
        material: Material | None = None,
    ) -> None:
        self.folder = folder
        self.material = material or pico_material(folder, names)
        self.names = self.material.names
        self.base = self.material.base
        self.port = free_port()
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.server = ServerHome(folder / "server")
        self.owners = {name: OwnerHome(folder / name) for name in self.names}
        self._inside = inside
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
                process.wait()

    @property
    def job(self) -> Path:
        """The job's TOML file."""
        return self.server.folder / "job-1.toml"

    def words(self, who: str) -> list[str]:
        """The command that somebody runs."""
        words = ["server", "run"] if who == "server" else ["client", "run"]
        return [*words, str(self.folder / who)]

    def start(self, *who: str, on: str = "") -> None:
        """Starts the server, or owners by name; what they print goes to files.

        on: another host than their own.
        """
        for each in who:
            self.start_behind(self._prefix(on or each), each, *self.words(each))

    def start_behind(self, prefix: Sequence[str], name: str, *words: str) -> None:
        """Starts another command of `blindmerge`, behind these words, in place of its last."""
        if name in self.running and self.running[name].poll() is None:
            self.kill(name)
        with (self.folder / f"{name}.out").open("a") as out:
            self.running[name] = subprocess.Popen(
                [*prefix, sys.executable, "-m", "blindmerge", *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(),
            )

    def start_merge(self, job: Path | None = None) -> None:
        """Starts the coordinator's `server merge`, as `merge`."""
        self.start_behind(self._prefix("server"), "merge", *self._merge(job))

    def kill(self, who: str) -> None:
        """SIGKILL, as if the machine lost power."""
        self.running[who].kill()
        self.running[who].wait()

    def run(
        self, *words: str, timeout_s: float = 600, where: str = "", answer: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command of `blindmerge` to its end.

        where: at the server or an owner.   answer: what a person types.
        """
        return subprocess.run(
            [*self._prefix(where), sys.executable, "-m", "blindmerge", *words],
            input=answer,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment(),
            check=False,
        )

    def merge(
        self, timeout_s: float = 600, job: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """The coordinator's `server merge`."""
        return self.run(*self._merge(job), timeout_s=timeout_s, where="server")

    def printed(self, who: str) -> str:
        """What a started process has printed."""
        return (self.folder / f"{who}.out").read_text()

    def wait_for(self, who: str, text: str, times: int = 1, deadline_s: float = 300) -> None:
        """Until a process has printed a text so many times.   Raises TimeoutError."""

        def is_there() -> bool:
            return self.printed(who).count(text) >= times

        try:
            wait_until(is_there, f"'{text}' of '{who}'", deadline_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it printed:\n{self.printed(who)}") from None

    def signed(self, by: Identity | None = None, **changes: Any) -> SignedPlan:
        """The job's plan with some fields changed.   by: instead of the coordinator."""
        plan = make_plan(JobSettings.read(self.job), self.server.roster(), self.server.layouts)
        fields = {name: getattr(plan, name) for name in Plan.model_fields}
        return SignedPlan.sign(Plan.model_validate(fields | changes), by or self.server.identity())

    def edit_policy(self, name: str, lines: Mapping[str, object]) -> None:
        """Sets keys of an owner's policy."""
        set_keys(self.owners[name].policy_file, lines)

    def new_job(self, name: str, method: str = "", **lines: object) -> Path:
        """Another job's file, with these keys set.   method: as TOML; the same if left out."""
        file = self.server.folder / f"{name}.toml"
        shutil.copy(self.job, file)
        set_keys(file, {"name": name, **lines})
        if method:
            _set_method(file, method)
        return file

    def _prefix(self, who: str) -> Sequence[str]:
        return self._inside(who) if who else ()

    def _merge(self, job: Path | None) -> tuple[str, ...]:
        return ("server", "merge", str(self.server.folder), str(job or self.job))

    def _set_up(self, host: str, method: str) -> None:
        now = datetime.datetime.now(datetime.UTC)
        hosts = list(dict.fromkeys((host, "127.0.0.1")))
        folder = self.server.folder
        make_server(folder, "coordinator", hosts, self.port, OsRandomness(), now)
        for name, home in self.owners.items():
            make_owner(home.folder, name, OsRandomness())
            self.server.add(OwnerKeys.read(home.public_keys_file))
        for number, name in enumerate(self.names):
            self._equip(number, name, f"{host}:{self.port}")
        shutil.copy(self.server.job_template, self.job)
        _set_method(self.job, method)
        settings = {
            "base": str(self.base),
            "examples": self.material.examples,
            "max_length": self.material.max_length,
        }
        set_keys(self.job, settings)

    def _equip(self, number: int, name: str, address: str) -> None:
        """Model, data, roster and files of one owner, who trusts the coordinator."""
        home = self.owners[name]
        self.material.equip(number, home.folder)
        shutil.copy(self.server.authority_file, home.folder / "ca.crt")
        shutil.copy(self.server.roster_file, home.roster_file)
        files = {split: f"{split}.jsonl" for split in SPLITS}
        settings = {"base": str(self.base), "model": "own", **files, "server": address}
        set_keys(home.client_file, settings)
        policy: dict[str, object] = {
            "roster": self.server.roster().sha256.hex(),
            "base_models": [Checkpoint(self.base).sha256],
            "methods": ["regmean", "progressive", "average"],
            "layers": ["*"],
            "least_owners": 3,
            "rows_factor": self.material.rows_factor,
            "approve": "automatic",
        }
        set_keys(home.policy_file, policy)
        text = home.policy_file.read_text().replace(
            "# expires = 2027-01-31", "expires = 9999-12-31"
        )
        key = self.server.identity().public.hex()
        home.policy_file.write_text(text.replace('# coordinator = "..."', f'coordinator = "{key}"'))


def _set_method(file: Path, method: str) -> None:
    file.write_text(re.sub(r"(?m)^method = .*", f"method = {method}", file.read_text()))


def set_keys(file: Path, values: Mapping[str, object]) -> None:
    """Sets keys of a TOML file that stand in it, perhaps as comments."""
    lines, left = file.read_text().splitlines(), dict(values)
    for number, line in enumerate(lines):
        key = line.removeprefix("# ").partition(" = ")[0]
        if key in left:
            lines[number] = f"{key} = {json.dumps(left.pop(key))}"
    assert not left, f"not in {file.name}: {sorted(left)}"
    file.write_text("\n".join(lines) + "\n")
