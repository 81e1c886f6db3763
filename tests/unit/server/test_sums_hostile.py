"""Hostile answers under masks: who sends one is out, and nobody else suffers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from blindmerge.errors import TooFewOwners
from blindmerge.secagg.messages import SEALED_BYTES, Deal, Limits, encode, parse
from blindmerge.wire import to_wire
from support.grids import (
    FIRST_NODE,
    MemoryGrid,
    honest,
    messages_of,
    misbehaving,
    reply_with,
    run_job,
)
from support.jobs import NAMES, Job, assert_average, make_job, under_masks

ALL = (0, 1, 2, 3)
BERT = FIRST_NODE + 1


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Four owners, and a method that is cheap to compute."""
    return under_masks(make_job(tmp_path, owners=4, method="average"))


# Each instead of the honest reply.


def saying(request: Message, messages: list[bytes]) -> list[Message]:
    arrays = {
        str(n): Array(*to_wire(np.frombuffer(data, np.uint8))) for n, data in enumerate(messages)
    }
    return reply_with(request, answer=ArrayRecord(arrays))


def nonsense(request: Message, _reply: Message) -> list[Message]:
    return saying(request, [b"\xff" * 50])


def nothing(request: Message, _reply: Message) -> list[Message]:
    return saying(request, [])


def no_record(request: Message, _reply: Message) -> list[Message]:
    return reply_with(request)


def twice(request: Message, reply: Message) -> list[Message]:
    return saying(request, 2 * messages_of(reply))


def one_less(request: Message, reply: Message) -> list[Message]:
    return saying(request, messages_of(reply)[:-1])


def cut(request: Message, reply: Message) -> list[Message]:
    *rest, last = messages_of(reply)
    return saying(request, [*rest, last[:-8]])


def contradiction(request: Message, reply: Message) -> list[Message]:
    """All that was asked for, and one of it again with another payload."""
    messages = messages_of(reply)
    return saying(request, [*messages, messages[0][:-1] + bytes([messages[0][-1] ^ 1])])


def numbers(request: Message, _reply: Message) -> list[Message]:
    """A statistic in the open."""
    return reply_with(request, answer=ArrayRecord({"a": Array(*to_wire(np.ones(100)))}))


HOSTILE = [
    *[(wrong, at) for at in (0, 1, 6, 7) for wrong in (nonsense, nothing, no_record, twice, cut)],
    *[(w, at) for at in (2, 4) for w in (nonsense, nothing, no_record, one_less, cut, numbers)],
    (contradiction, 2),
]


@pytest.mark.parametrize(("wrong", "at"), HOSTILE)
def test_a_hostile_answer_costs_nobody_else_anything(job: Job, wrong: Any, at: int) -> None:
    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], wrong, at)
    record = run_job(job, MemoryGrid(nodes)).record
    assert record.dropped.keys() == {"bert"}
    assert record.dropped["bert"].reason.isprintable()
    present = ALL if at > 5 else (0, 2, 3)
    assert set(record.owners.values()) == {tuple(NAMES[number] for number in present)}
    assert_average(job, present)


@pytest.mark.parametrize("at", [0, 6, 7])
def test_the_message_of_another_owner_is_not_ones_own(job: Job, at: int) -> None:
    nodes, heard = honest(job), list[list[bytes]]()

    def overheard(_request: Message, reply: Message) -> list[Message]:
        heard.append(messages_of(reply))
        return [reply]

    # anna is asked first.
    nodes[FIRST_NODE] = misbehaving(nodes[FIRST_NODE], overheard, at)
    nodes[BERT] = misbehaving(nodes[BERT], lambda request, _reply: saying(request, heard[0]), at)
    record = run_job(job, MemoryGrid(nodes)).record
    assert heard
    assert record.dropped.keys() == {"bert"}
    assert_average(job, (0, 2, 3) if at == 0 else ALL)


CULPRIT = "ShareInvalid: 'bert', or the server that carried it, sent shares that do not open"


def with_spoilt_shares(job: Job, count: int) -> MemoryGrid:
    """bert deals shares that do not open, to the first `count` of the others."""

    def spoilt(request: Message, reply: Message) -> list[Message]:
        (data,) = messages_of(reply)
        deal = parse(data, Limits(owners=4, message_bytes=len(data)))
        assert isinstance(deal, Deal)
        sealed = bytearray(deal.sealed)
        for place in range(count):
            sealed[place * SEALED_BYTES] ^= 1
        return saying(request, [encode(replace(deal, sealed=bytes(sealed)), 4)])

    nodes = honest(job)
    nodes[BERT] = misbehaving(nodes[BERT], spoilt, at=1)
    return MemoryGrid(nodes)


def test_shares_that_do_not_open_are_found_by_who_got_them(job: Job) -> None:
    """The server cannot see it: the owner that can has to leave, and names the culprit."""
    record = run_job(job, with_spoilt_shares(job, 1)).record
    assert record.dropped["anna"].reason == CULPRIT
    assert record.dropped.keys() == {"anna"}
    assert_average(job, (1, 2, 3))


def test_a_job_that_shares_stop_names_who_dealt_them(job: Job) -> None:
    with pytest.raises(TooFewOwners, match=CULPRIT):
        run_job(job, with_spoilt_shares(job, 3))
