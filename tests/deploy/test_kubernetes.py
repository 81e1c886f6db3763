"""The manifests: valid, restricted, and with the same two halves as the containers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.tree import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
OBJECTS: list[dict[str, Any]] = [
    each for file in FILES for each in yaml.safe_load_all(file.read_text())
]
PODS = {
    each["metadata"]["name"]: each["spec"]["template"]["spec"]
    for each in OBJECTS
    if each["kind"] == "Deployment"
}
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_manifest_fits_the_schema(file: Path) -> None:
    command = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PODS)
def test_pods_are_restricted(name: str) -> None:
    """Kubernetes' profile `restricted`, which the namespaces demand, and more."""
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
    namespaces = [each for each in OBJECTS if each["kind"] == "Namespace"]
    for namespace in namespaces:
        labels = namespace["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("half", ["gateway", "node", "server"])
def test_pods_run_the_command_of_the_image_as_its_user(half: str) -> None:
    pod = PODS[f"blindmerge-{half}"]
    user, group = map(int, COMPOSE[half]["user"].split(":"))
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (
        user,
        group,
    )
    (container,) = pod["containers"]
    assert (
        f"CMD {container['args']}".replace("'", '"') in (ROOT / "deploy" / "Dockerfile").read_text()
    )


def _volumes(half: str) -> set[str]:
    (container,) = PODS[f"blindmerge-{half}"]["containers"]
    return {mount["name"] for mount in container["volumeMounts"]}


def test_data_and_keys_are_mounted_at_the_gateway_alone() -> None:
    assert {"owner", "data", "socket"} <= _volumes("gateway")
    assert _volumes("node") == {"home", "files", "socket", "tmp"}


def _policies(namespace: str) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]
        for each in OBJECTS
        if each["kind"] == "NetworkPolicy" and each["metadata"]["namespace"] == namespace
    }


def test_only_the_node_has_a_way_out_and_only_to_the_coordinator() -> None:
    policies = _policies("blindmerge-owner")
    closed = policies["nothing-in-nothing-out"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (other,) = (spec for name, spec in policies.items() if name != "nothing-in-nothing-out")
    assert other["podSelector"] == {"matchLabels": {"app": "blindmerge-node"}}
    assert other["policyTypes"] == ["Egress"]
    coordinator, names = other["egress"]
    assert coordinator["ports"] == [{"protocol": "TCP", "port": 9092}]
    assert {each["port"] for each in names["ports"]} == {53}


def test_the_server_opens_no_connection() -> None:
    (spec,) = _policies("blindmerge-server").values()
    assert "Egress" in spec["policyTypes"]
    assert "egress" not in spec
    assert spec["ingress"] == [{"ports": [{"protocol": "TCP", "port": 9092}]}]
