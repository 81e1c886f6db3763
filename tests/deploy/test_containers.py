"""The images and the compose file: valid, and as locked down as the threat model says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.tree import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
SCRIPTS = Path(sys.executable).parent


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing() -> None:
    _run(SCRIPTS / "hadolint", "--failure-threshold", "info", DOCKERFILE)


def test_the_compose_file_fits_the_specification() -> None:
    _run(SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_every_service_is_a_stage_with_its_user() -> None:
    stages = {}
    for name, body in re.findall(
        r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE.read_text(), re.M | re.S
    ):
        stages[name] = re.findall(r"^USER (\S+)$", body, re.M)
    for name, service in SERVICES.items():
        assert service["build"]["target"] == name
        assert stages[name] == [service["user"]]
    users = [service["user"].split(":")[0] for service in SERVICES.values()]
    assert len(set(users)) == len(users)
    assert "0" not in users


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & service.keys()


def test_the_gateway_has_the_data_and_no_network_and_the_node_the_network_and_no_data() -> None:
    gateway, node = SERVICES["gateway"], SERVICES["node"]
    assert gateway["network_mode"] == "none"
    assert not {"networks", "ports"} & gateway.keys()
    assert "network_mode" not in node
    assert "ports" not in node
    mounts = {
        name: {volume.split(":")[-2 if volume.endswith(":ro") else -1] for volume in each}
        for name, each in (("gateway", gateway["volumes"]), ("node", node["volumes"]))
    }
    assert mounts["gateway"] == {"/owner", "/data", "/run/blindmerge"}
    assert mounts["node"] == {"/node", "/run/blindmerge"}
    assert all(volume.endswith(":ro") for volume in node["volumes"])


def test_what_the_image_copies_is_there_and_nothing_else_is_sent() -> None:
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.M)
        for name in line.split()
    }
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_the_tested_version_of_torch() -> None:
    pinned = re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert f"ARG TORCH={pinned[0]}\n" in DOCKERFILE.read_text()


@pytest.mark.skipif(shutil.which("install") is None, reason="needs coreutils' `install`")
def test_the_folder_of_the_socket_is_made_as_the_gateway_demands(tmp_path: Path) -> None:
    """The words of the Dockerfile, with this user in place of the image's."""
    words = re.search(r"install -d -o gateway -g blindmerge (-m \d+) ", DOCKERFILE.read_text())
    assert words is not None
    folder = tmp_path / "gateway"
    _run("install", "-d", *words[1].split(), folder)
    assert folder.stat().st_mode & 0o022 == 0
