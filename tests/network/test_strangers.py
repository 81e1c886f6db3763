"""Whoever reaches the server's port, or owns the server itself, gets nothing out of owners."""

import hashlib
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.supercore.fab import Fab

from blindmerge.bundle import BUNDLE_FILES
from blindmerge.identity import Identity
from blindmerge.secagg.secret import OsRandomness
from blindmerge_client.config import Home as OwnerHome
from blindmerge_client.setup import make_home as make_owner
from blindmerge_server import flower_run
from blindmerge_server.config import Home as ServerHome
from support.deployment import Deployment, set_keys
from support.network import Network
from support.processes import wait_until

pytestmark = pytest.mark.network

STRANGER = "stranger"
OPEN = {"/health", "/v1/control/get-login-details", "/v1/control/get-auth-tokens"}
"""What answers everybody, with nothing: nobody can log in, so there is nothing to tell."""


@contextmanager
def _visitor(federation: Deployment, home: OwnerHome) -> Iterator[None]:
    """`client run` on the stranger's host, with a folder like an owner's."""
    federation.folder.joinpath(f"{home.folder.name}.out").write_text("")
    federation.start(home.folder.name, on=STRANGER)
    try:
        yield
    finally:
        federation.running[home.folder.name].terminate()
        federation.running[home.folder.name].wait()


def _like_anna(federation: Deployment, name: str) -> OwnerHome:
    """An owner's folder with anna's model and data, and keys of its own."""
    home, anna = OwnerHome(federation.folder / name), federation.owners["anna"]
    make_owner(home.folder, name, OsRandomness())
    for file in ("client.toml", "policy.toml", "ca.crt", "roster", "train.jsonl"):
        shutil.copy(anna.folder / file, home.folder / file)
    set_keys(home.client_file, {"name": name, "model": str(anna.folder / "own")})
    set_keys(home.client_file, {"validation": str(anna.folder / "validation.jsonl")})
    return home


def _entered(federation: Deployment) -> set[str]:
    said = federation.run("server", "status", str(federation.server.folder), where="server").stdout
    return {name for name in (*federation.names, "mallory") if name in said}


def test_a_server_with_a_certificate_of_another_authority_is_not_talked_to(
    federation: Deployment, tmp_path: Path
) -> None:
    made = federation.run("server", "init", str(tmp_path / "other"), "--host", "10.213.7.1")
    assert made.returncode == 0, made.stderr
    home = _like_anna(federation, "deceived")
    shutil.copy(ServerHome(tmp_path / "other").authority_file, home.folder / "ca.crt")
    with _visitor(federation, home):
        federation.wait_for("deceived", "not by the authority that you trust")
    assert "connected to" not in federation.printed("deceived")


def test_a_server_whose_certificate_is_for_another_address_is_not_talked_to(
    federation: Deployment, network: Network
) -> None:
    address = network.add_address("server")
    home = _like_anna(federation, "redirected")
    set_keys(home.client_file, {"server": f"{address}:{federation.port}"})
    with _visitor(federation, home):
        federation.wait_for("redirected", "certificate is for another address")
    assert "connected to" not in federation.printed("redirected")


def test_a_node_that_is_not_registered_does_not_get_in(federation: Deployment) -> None:
    home = _like_anna(federation, "mallory")
    with _visitor(federation, home):
        federation.wait_for("mallory", "it does not know this node")
        assert "mallory" not in _entered(federation)
    assert "connected to" not in federation.printed("mallory")


def test_every_door_of_the_server_is_closed_to_a_stranger(
    federation: Deployment, network: Network
) -> None:
    url = f"https://{network.address('server')}:{federation.port}"
    trusted = ssl.create_default_context(cafile=str(federation.server.authority_file))

    def knock() -> dict[str, httpx.Response]:
        answers = {}
        headers = {"content-type": "application/protobuf", "authorization": "Bearer guess"}
        with httpx.Client(base_url=url, verify=trusted, headers=headers, timeout=60) as http:
            for path, methods in http.get("/openapi.json").json()["paths"].items():
                for method in methods:
                    answers[path] = http.request(method, path, content=b"")
        return answers

    federation.wait_for("server", "listening on")
    answers = network.call(STRANGER, knock)
    assert {"start-run", "pull-messages", "acquire-task"} <= {
        path.split("/")[-1] for path in answers
    }
    opened = {path for path, answer in answers.items() if answer.status_code != 401}
    assert opened == OPEN
    assert all(answers[path].content in (b"", b"{}") for path in OPEN - {"/health"})


def test_a_stolen_server_cannot_make_owners_answer_plans_of_its_own(
    federation: Deployment,
) -> None:
    """All of the server is the thief's, but not the key that owners pin: say, it is new."""
    thief = ServerHome(federation.folder / "thief")
    shutil.copytree(federation.server.folder, thief.folder)
    thief.identity_file.write_bytes(Identity.generate("coordinator", OsRandomness()).seed.reveal())
    job = federation.new_job("stolen", patience_hours=0.05)
    shutil.move(job, thief.folder / "stolen.toml")
    done = federation.run(
        "server", "merge", str(thief.folder), str(thief.folder / "stolen.toml"), where="server"
    )
    assert done.returncode == 6, done.stdout + done.stderr
    for name in federation.names:
        assert "job 'stolen'" not in federation.printed(name)
        listed = federation.run("client", "jobs", str(federation.owners[name].folder))
        assert "stolen" not in listed.stdout


# Flower's own reading of ignore lists, when it builds the bundle.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_code_that_a_server_sends_is_not_run(
    federation: Deployment, network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bundle that shadows the package: a node that unpacked it would leave a trace."""
    trace = tmp_path / "was-here"
    project = BUNDLE_FILES["pyproject.toml"]
    code = f"open({str(trace)!r}, 'w')\n".encode()
    content, _ = build_fab_from_files(
        {"pyproject.toml": project, "blindmerge_client/__init__.py": code}
    )
    hostile = Fab(hashlib.sha256(content).hexdigest(), content, {})
    monkeypatch.setattr(flower_run, "bundle", lambda: hostile)

    def ask() -> list[Message]:
        with flower_run.flower_run(federation.server) as grid:
            wait_until(lambda: len(list(grid.get_node_ids())) == 3, "three nodes")
            return list(
                grid.send_and_receive(
                    [
                        Message(
                            RecordDict({"request": ConfigRecord({})}),
                            dst_node_id=node,
                            message_type="query.name",
                        )
                        for node in grid.get_node_ids()
                    ],
                    timeout=120,
                )
            )

    for name in federation.names:
        federation.wait_for(name, "connected to")
    replies = network.call("server", ask)
    assert len(replies) == 3
    for reply in replies:
        assert reply.has_error()
        assert "not that of the installed blindmerge" in str(reply.error.reason)
    assert not trace.exists()
