"""The units: understood by systemd, and sandboxed by its own count."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.tree import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
EXPOSED = {"gateway": 10, "node": 15, "server": 15}
"""The most that `systemd-analyze security` may count, in tenths; 100 is no sandbox at all."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs the command systemd-analyze"
)


def _analyze(*words: str | Path) -> str:
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_is_sandboxed(unit: Path) -> None:
    limit = EXPOSED[unit.stem.removeprefix("blindmerge-")]
    _analyze("security", "--offline=yes", f"--threshold={limit}", "--no-pager", unit)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_every_line(unit: Path, tmp_path: Path) -> None:
    # A program that is there, and no other unit that may be missing on this machine.
    text = unit.read_text().replace("/opt/blindmerge/bin/blindmerge", sys.executable)
    text = re.sub(r"(?m)^(Wants|After)=.*\n", "", text)
    copy = tmp_path / unit.name
    copy.write_text(text)
    said = _analyze("verify", "--man=no", copy)
    assert unit.name not in said, said


def test_the_gateway_has_no_network_and_the_node_no_data() -> None:
    gateway, node = (
        (ROOT / f"deploy/systemd/blindmerge-{half}.service").read_text()
        for half in ("gateway", "node")
    )
    assert "\nPrivateNetwork=yes\n" in gateway
    assert "\nRestrictAddressFamilies=AF_UNIX\n" in gateway
    assert "\nInaccessiblePaths=/var/lib/blindmerge\n" in node
    assert "client gateway /var/lib/blindmerge/owner\n" in gateway
