"""The journal: what was saved comes back, with mode 0600, or an error says why not."""

from pathlib import Path

import pytest

from blindmerge.errors import JobAborted, ResourceMissing
from blindmerge_client.journal import Journal
from blindmerge_client.protocol import OwnerJob
from blindmerge_server.protocol import start
from support.secure_sum import NOW, federation, manifest_for


def _advertised() -> tuple[OwnerJob, OwnerJob]:
    owners = federation(3)
    empty = owners.jobs[0]
    request = start(manifest_for(owners.roster), owners.roster).request(0)
    return empty, empty.receive(request, now=NOW, rng=owners.rng)


def test_the_last_saved_state_comes_back(tmp_path: Path) -> None:
    empty, job = _advertised()
    journal = Journal(tmp_path / "job.state")
    assert journal.load(empty) == empty
    journal.save(empty)
    receipt = journal.save(job)
    again = Journal(tmp_path / "job.state").load(empty)
    assert again == job
    assert again.reply(0, receipt) == job.reply(0, receipt)
    assert (tmp_path / "job.state").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["job.state"]


def test_the_receipt_of_another_state_is_no_receipt(tmp_path: Path) -> None:
    empty, job = _advertised()
    receipt = Journal(tmp_path / "job.state").save(empty)
    with pytest.raises(JobAborted, match="not on disk"):
        job.reply(0, receipt)


def test_a_kill_between_the_two_files_leaves_the_old_state(tmp_path: Path) -> None:
    empty, job = _advertised()
    journal = Journal(tmp_path / "job.state")
    journal.save(job)
    (tmp_path / "job.state.new").write_bytes(b"half a state")
    assert journal.load(empty) == job
    journal.save(job)
    assert journal.load(empty) == job


def test_disk_errors_are_named(tmp_path: Path) -> None:
    empty, job = _advertised()
    with pytest.raises(ResourceMissing, match="stored"):
        Journal(tmp_path / "nowhere" / "job.state").save(job)
    with pytest.raises(ResourceMissing, match="read"):
        Journal(tmp_path).load(empty)
