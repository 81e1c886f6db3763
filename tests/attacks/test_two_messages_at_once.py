"""Attack: two messages reach two processes of one owner at the same moment.

Each process would go on from the same state, and the owner would sign two sets of survivors, or
seal two different shares with one key.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread

import pytest

from blindmerge.errors import BlindmergeError, ProtocolBroken
from blindmerge.secagg.messages import AdvertList, Limits, Survivors, encode, parse
from blindmerge_client.journal import Journal
from blindmerge_client.protocol import OwnerJob
from blindmerge_server.exchanges import Kind
from support.grids import honest_until
from support.jobs import Job, make_job, under_masks

OWNERS = 4
_MEETING_S = 0.2


@dataclass
class _Answers:
    """Of two processes that were asked different things."""

    said: list[bytes]
    errors: list[BlindmergeError]


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has read the state waits until another has read it too, or nobody can."""
    barrier, load = Barrier(2), Journal.load

    def load_and_meet(journal: Journal, empty: OwnerJob) -> OwnerJob:
        job = load(journal, empty)
        with suppress(BrokenBarrierError):
            barrier.wait(_MEETING_S)
        return job

    monkeypatch.setattr(Journal, "load", load_and_meet)


def _ask_at_once(job: Job, messages: list[bytes]) -> _Answers:
    answers = _Answers([], [])

    def ask(message: bytes) -> None:
        try:
            (said,) = job.owner(0).answer(job.plan, None, [message]).values()
            answers.said.append(said.tobytes())
        except BlindmergeError as error:
            answers.errors.append(error)

    threads = [Thread(target=ask, args=(message,)) for message in messages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _job(folder: Path) -> Job:
    return under_masks(make_job(folder, owners=OWNERS, texts=4, method="average"))


def _other(message: bytes) -> bytes:
    """The same without the last owner: enough are left."""
    told = parse(message, Limits(OWNERS, 10_000))
    few = tuple(range(OWNERS - 1))
    if isinstance(told, Survivors):
        return encode(Survivors(told.manifest_hash, few), OWNERS)
    assert isinstance(told, AdvertList)
    records = {seat: told.adverts[seat].encode() for seat in few}
    return encode(AdvertList(told.manifest_hash, told.adverts.of(records)), OWNERS)


@pytest.mark.parametrize("kind", [Kind.SHARE, Kind.CONSISTENCY])
def test_one_of_two_stories_is_answered(
    tmp_path: Path, kind: Kind, request: pytest.FixtureRequest
) -> None:
    job = _job(tmp_path)
    _, (message,) = honest_until(job, kind)
    request.getfixturevalue("meeting")
    answers = _ask_at_once(job, [message, _other(message)])
    assert len(answers.said) == 1
    (error,) = answers.errors
    assert isinstance(error, ProtocolBroken)
    assert "two different messages" in error.message
