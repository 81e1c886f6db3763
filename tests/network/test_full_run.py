"""A federation over a real network, from keys to an accepted model. This one runs in CI too."""

import json
from pathlib import Path

from transformers import AutoModelForSequenceClassification

from blindmerge.checkpoint import Checkpoint
from support.material import Material, pico_material
from support.networked import networked


def _run(folder: Path, material: Material, method: str) -> None:
    with networked(folder, material, method) as (network, federation):
        done = federation.merge(timeout_s=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        job = federation.server.jobs / "my-job-1"
        report = json.loads((job / "report.json").read_text())
        assert [owner["missing"] for owner in report["owners"]] == [None] * 3
        AutoModelForSequenceClassification.from_pretrained(job / "merged")
        merged = Checkpoint(job / "merged").sha256
        for name, owner in zip(federation.names, report["owners"], strict=True):
            # Counted on the wire by the kernel: what the report says, and what carries it.
            assert owner["bytes_sent"] < network.sent_bytes(name) < 2 * owner["bytes_sent"] + 10**6
            federation.wait_for(name, "job 'my-job-1' is done")
            received = next(federation.owners[name].jobs.glob("*/merged"))
            assert Checkpoint(received).sha256 == merged
        home = str(federation.owners[federation.names[0]].folder)
        for command in ("evaluate", "accept"):
            said = federation.run("client", command, home)
            assert said.returncode == 0, said.stderr
        current = federation.owners[federation.names[0]].folder / "current"
        assert Checkpoint(current).sha256 == merged
        checked = federation.run(
            "verify-transcript",
            str(job / "transcripts" / "sum-001.cbor"),
            "--roster",
            federation.server.roster().sha256.hex(),
        )
        assert checked.returncode == 0, checked.stderr
        assert "sum of 3 of 3 owners" in checked.stdout


def test_three_owners_in_namespaces_of_their_own_merge_their_models(tmp_path: Path) -> None:
    _run(tmp_path, pico_material(tmp_path), '{ name = "regmean", rows_factor = 1.0 }')
