"""The spool: blocks come back, damaged ones are noticed, and nothing else is in memory."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from blake3 import blake3

from blindmerge.encoding import Layout
from blindmerge.errors import ResourceMissing
from blindmerge_server.spool import Spool
from support.secure_sum import MemorySpool, check_sum, federation, manifest_for, three_parts

ROSTER = federation(3).roster
MANIFEST = manifest_for(ROSTER, parts=three_parts(3, bits=48))


def _digest(payload: bytes) -> bytes:
    return blake3(payload).digest()


def test_blocks_come_back_in_any_order_and_after_a_restart(tmp_path: Path) -> None:
    payloads = {
        (seat, block): bytes([16 * seat + block]) * MANIFEST.wire_bytes(block)
        for seat in range(3)
        for block in (2, 5, 0, 4, 1, 3)
    }
    spool = Spool(tmp_path, MANIFEST)
    for (seat, block), payload in payloads.items():
        spool.write(seat, block, payload)
        spool.sync(seat)
    again = Spool(tmp_path, MANIFEST)
    for (seat, block), payload in payloads.items():
        assert again.read(seat, block, _digest(payload)) == payload
    files = sorted(tmp_path.rglob("*.blocks"))
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 3
    # One after another, with no gaps: 7, 5 and 8 numbers of 6 bytes.
    assert [path.stat().st_size for path in files] == [120] * 3
    assert files[1].read_bytes() == b"".join(payloads[1, block] for block in range(6))


def test_a_damaged_or_missing_block_is_noticed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MANIFEST)
    payload = bytes(MANIFEST.wire_bytes(0))
    spool.write(1, 0, payload)
    with pytest.raises(ResourceMissing, match="damaged"):
        spool.read(1, 0, _digest(b"other"))
    with pytest.raises(ResourceMissing, match="damaged"):
        spool.read(1, 1, _digest(payload))
    with pytest.raises(ResourceMissing, match="cannot be read"):
        spool.read(2, 0, _digest(payload))
    spool.forget(1)
    spool.forget(1)
    with pytest.raises(ResourceMissing):
        spool.read(1, 0, _digest(payload))


def test_runs_do_not_mix_and_can_be_removed(tmp_path: Path) -> None:
    runs = [manifest_for(ROSTER, attempt=attempt) for attempt in range(2)]
    first, second = (Spool(tmp_path, run) for run in runs)
    payload = bytes(runs[0].wire_bytes(0))
    first.write(0, 0, payload)
    with pytest.raises(ResourceMissing):
        second.read(0, 0, _digest(payload))
    first.remove()
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_cannot_be_made_or_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceMissing, match="cannot be made"):
        Spool(tmp_path / "file", MANIFEST)
    spool = Spool(tmp_path, MANIFEST)
    spool.remove()
    with pytest.raises(ResourceMissing, match="cannot be written"):
        spool.write(0, 0, b"")
    with pytest.raises(ResourceMissing, match="cannot be written"):
        spool.sync(0)


def test_sync_reaches_the_disk_for_file_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = list[str]()
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/dev/fd/{file}")))
    spool = Spool(tmp_path, MANIFEST)
    for block in range(6):
        spool.write(2, block, bytes(MANIFEST.wire_bytes(block)))
    assert synced == []
    spool.sync(2)
    (file,) = tmp_path.rglob("*.blocks")
    assert synced == [str(file), str(file.parent)]


@pytest.mark.parametrize("parts", [(), three_parts(4)], ids=["one part", "three parts"])
def test_a_sum_from_disk_equals_the_sum_from_memory(
    tmp_path: Path, parts: Sequence[Layout]
) -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster, block_elements=3, parts=parts)

    class OnDisk(MemorySpool):
        spool = Spool(tmp_path, manifest)

        def write(self, seat: int, block: int, payload: bytes) -> None:
            self.spool.write(seat, block, payload)

        def sync(self, seat: int) -> None:
            self.spool.sync(seat)

        def read(self, seat: int, block: int, digest: bytes) -> bytes:
            return self.spool.read(seat, block, digest)

    owners.spool = OnDisk
    owners.gone = {1: "R3"}
    check_sum(owners.run(manifest), owners, range(4))
