"""An owner as two containers run it: one user with data, another with the network.

No container engine is needed: the commands are the image's, the users the compose file's, and the
walls are the kernel's (see `support.container`).
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.container import closed_to_others, contained
from support.deployment import Deployment, set_keys
from support.material import pico_material
from support.network import Network, why_no_network
from support.processes import wait_until
from support.tree import ROOT

pytestmark = pytest.mark.network

DEPLOY = ROOT / "deploy"
SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def _user(half: str) -> tuple[int, int]:
    user, group = SERVICES[half]["user"].split(":")
    return int(user), int(group)


USERS = {half: _user(half) for half in ("gateway", "node")}
IMAGE = (DEPLOY / "Dockerfile").read_text()
COMMANDS = {words[1]: words for words in map(ast.literal_eval, re.findall(r"CMD (\[.*\])", IMAGE))}
GROUP = USERS["gateway"][1]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that other users may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="blindmerge-") as made:
        os.chmod(made, 0o755)  # noqa: S103
        yield Path(made)


def _handed_over(path: Path, user: int) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, user, GROUP)


def _made(path: Path, user: int, mode: int) -> Path:
    path.mkdir()
    os.chown(path, user, GROUP)
    path.chmod(mode)
    return path


class _Owner:
    """Anna's folders, divided between the two users as the runbook says."""

    def __init__(self, federation: Deployment, folder: Path) -> None:
        anna, (gateway, _), (node, _) = federation.owners["anna"], USERS["gateway"], USERS["node"]
        self.run = _made(folder / "run", gateway, 0o750)
        self.home = anna.folder
        self.node = _made(folder / "node", node, 0o700)
        set_keys(
            anna.client_file,
            {"socket": str(self.run / "gateway.sock"), "socket_group": "blindmerge"},
        )
        for name in ("client.toml", "node", "ca.crt"):
            shutil.copy(anna.folder / name, self.node / name)
        tmp = {half: _made(folder / f"tmp-{half}", USERS[half][0], 0o700) for half in USERS}
        for file in federation.base.iterdir():
            file.chmod(0o644)
        _handed_over(self.home, gateway)
        _handed_over(self.node, node)
        self.gateway_walls = contained(*USERS["gateway"], [tmp["gateway"], self.home, self.run])
        self.node_walls = contained(*USERS["node"], [tmp["node"], self.node])

    def words(self, half: str) -> list[str]:
        """The image's command, on this owner's folders."""
        at = {"/owner": str(self.home), "/node": str(self.node)}
        return [at.get(word, word) for word in COMMANDS[half]]


def _fails(words: list[str], *, with_words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode != 0, done.stdout
    assert with_words in done.stderr, done.stderr


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import socket\n{code}"]


def test_gateway_and_node_are_two_users_of_whom_one_has_data_and_one_the_network(
    folder: Path,
) -> None:
    if why := why_no_network():
        pytest.skip(why)
    if closed := closed_to_others():
        pytest.skip(f"needs an installation that other users can read: {closed} is closed")
    group = Path("/etc/group").read_text() + f"blindmerge:x:{GROUP}:\n"
    material = pico_material(folder)
    hosts = ("server", *material.names)
    with (
        Network(*hosts, alone=("vault",), files={"group": group}) as network,
        Deployment(
            folder, host=network.address("server"), inside=network.inside, material=material
        ) as federation,
    ):
        anna = _Owner(federation, folder)
        gateway = [*network.inside("vault"), *anna.gateway_walls]
        node = [*network.inside("anna"), *anna.node_walls]
        federation.start("server", "bert", "cleo")
        federation.start_behind(gateway, "gateway", *anna.words("gateway"))
        path = anna.run / "gateway.sock"
        wait_until(path.exists, "the gateway's socket")
        federation.start_behind(node, "node", *anna.words("node"))
        done = federation.merge()
        assert done.returncode == 0, done.stdout + done.stderr + federation.printed("node")
        report = json.loads((federation.server.jobs / "my-job-1" / "report.json").read_text())
        assert [owner["missing"] for owner in report["owners"]] == [None] * 3

        for secret in ("identity", "policy.toml", "train.jsonl", "own/config.json", "jobs"):
            _fails([*node, "ls", "-l", str(anna.home / secret)], with_words="Permission denied")
            _fails([*node, "cat", str(anna.home / secret)], with_words="Permission denied")
        server = (network.address("server"), federation.port)
        _fails(
            [*gateway, *_python(f"socket.create_connection({server!r}, 5)")],
            with_words="Network is unreachable",
        )
        connect = _python(f"socket.socket(socket.AF_UNIX).connect({str(path)!r})")
        assert subprocess.run([*node, *connect]).returncode == 0
        stranger = contained(10009, 10009, [_made(folder / "tmp-stranger", 10009, 0o700)])
        _fails([*network.inside("vault"), *stranger, *connect], with_words="Permission denied")
        for walls in (gateway, node):
            # Everybody may write there, but for the root file system.
            _fails([*walls, "touch", f"{tempfile.gettempdir()}/x"], with_words="Read-only file")
        loaded = Path(f"/proc/{federation.running['node'].pid}/maps").read_text()
        assert "libpython" in loaded or "python3" in loaded
        assert "torch" not in loaded
