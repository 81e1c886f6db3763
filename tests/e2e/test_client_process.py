"""`client run` as a process of its own: how it starts, ends, and is killed. No server is there."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.deployment import Deployment
from support.processes import wait_until


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path) as running:
        running.start("anna")
        running.wait_for("anna", "no connection to")
        yield running


def gateways_of(federation: Deployment) -> list[int]:
    """Process ids of gateways of this folder."""
    folder = str(federation.owners["anna"].folder).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if b"gateway" in words and folder in words:
            found.append(int(path.parent.name))
    return found


def test_a_client_is_one_per_folder_and_takes_its_gateway_along_however_it_ends(
    federation: Deployment,
) -> None:
    home, process = federation.owners["anna"], federation.running["anna"]
    assert (home.folder / "gateway.sock").stat().st_mode & 0o777 == 0o600
    (gateway,) = gateways_of(federation)
    assert os.getpgid(gateway) != os.getpgid(process.pid), "Ctrl-C goes to one of them"
    second = federation.run("client", "run", str(home.folder))
    assert second.returncode != 0
    assert "another gateway listens" in second.stderr + second.stdout
    assert gateways_of(federation) == [gateway], "the first one is as it was"
    process.kill()
    process.wait()
    wait_until(lambda: not gateways_of(federation), "the end of the gateway")
    federation.start("anna")
    federation.wait_for("anna", "no connection to", times=2)
    again = federation.running["anna"]
    again.send_signal(signal.SIGTERM)
    assert again.wait(120) == 0
    assert "stopped; a job that was going on waits" in federation.printed("anna")
    assert "Traceback" not in federation.printed("anna")
    assert gateways_of(federation) == []
    assert not (home.folder / "gateway.sock").exists()
    logs = sorted(path.name for path in home.log_file.parent.iterdir())
    assert logs == ["client.log", "gateway.log"]
