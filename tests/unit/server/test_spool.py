"""The spool: blocks come back, damaged ones are noticed, and nothing else is in memory."""

import hashlib
from pathlib import Path

import pytest

from blindmerge.encoding import uniform
from blindmerge.errors import ResourceMissing
from blindmerge_server.spool import Spool
from support.secure_sum import MemorySpool, check_sum, federation, manifest_for

LAYOUT = uniform({"a": (10,)}, 8, owners=3, bits=48, block_elements=4)


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()


def test_blocks_come_back_in_any_order_and_after_a_restart(tmp_path: Path) -> None:
    payloads = {
        (seat, index): bytes([16 * seat + index]) * LAYOUT.wire_bytes(index)
        for seat in range(3)
        for index in (2, 0, 1)
    }
    spool = Spool(tmp_path, b"h" * 32, LAYOUT)
    for (seat, index), payload in payloads.items():
        spool.write(seat, index, payload)
    again = Spool(tmp_path, b"h" * 32, LAYOUT)
    for (seat, index), payload in payloads.items():
        assert again.read(seat, index, _digest(payload)) == payload
    assert [path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.blocks")] == [0o600] * 3


def test_a_damaged_or_missing_block_is_noticed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, b"h" * 32, LAYOUT)
    payload = bytes(LAYOUT.wire_bytes(0))
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
    first, second = (Spool(tmp_path, name * 32, LAYOUT) for name in (b"a", b"b"))
    payload = bytes(LAYOUT.wire_bytes(0))
    first.write(0, 0, payload)
    with pytest.raises(ResourceMissing):
        second.read(0, 0, _digest(payload))
    first.remove()
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_cannot_be_made_or_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceMissing, match="cannot be made"):
        Spool(tmp_path / "file", b"h" * 32, LAYOUT)
    spool = Spool(tmp_path, b"h" * 32, LAYOUT)
    spool.remove()
    with pytest.raises(ResourceMissing, match="cannot be written"):
        spool.write(0, 0, b"")


def test_a_sum_from_disk_equals_the_sum_from_memory(tmp_path: Path) -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster, block_elements=3)

    class OnDisk(MemorySpool):
        spool = Spool(tmp_path, manifest.hash, manifest.layout)

        def write(self, seat: int, index: int, payload: bytes) -> None:
            self.spool.write(seat, index, payload)

        def read(self, seat: int, index: int, digest: bytes) -> bytes:
            return self.spool.read(seat, index, digest)

    owners.spool = OnDisk
    owners.gone = {1: "R3"}
    check_sum(owners.run(manifest), owners, range(4))
