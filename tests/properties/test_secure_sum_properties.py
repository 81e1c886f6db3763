"""The secure sum over random rosters, thresholds, drop-outs and message orders.

Inputs are multiples of 2^-10, so that sums are exact: what is not equal is wrong.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.encoding import Bits
from blindmerge.errors import ProtocolBroken, TooFewOwners
from blindmerge.secagg.manifest import Thresholds
from blindmerge.secagg.masks import Prg
from blindmerge_server.protocol import start
from blindmerge_server.states import OpenState, Unmasking
from support.adversary import revealed_sums
from support.randomness import CounterRandomness
from support.secure_sum import (
    ROUNDS,
    Federation,
    MemorySpool,
    Outcome,
    check_sum,
    federation,
    manifest_for,
    three_parts,
)


@given(
    size=st.integers(3, 9),
    bits=st.sampled_from((32, 48, 64)),
    prg=st.sampled_from(("aes-256-ctr", "chacha20")),
    block_elements=st.sampled_from((1, 3, 7, 100)),
    several=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_the_result_is_the_sum_of_the_survivors_or_there_is_none(
    size: int, bits: Bits, prg: Prg, block_elements: int, several: bool, data: st.DataObject
) -> None:
    colluders = data.draw(st.integers(1, size - 2))
    thresholds = Thresholds.for_owners(size, colluders)
    owners = federation(size, terms={"colluders": colluders})
    seats = st.integers(0, size - 1)
    owners.gone = data.draw(st.dictionaries(seats, st.sampled_from(ROUNDS), max_size=size))
    owners.partial = frozenset(data.draw(st.sets(seats, max_size=1)))
    manifest = manifest_for(
        owners.roster,
        thresholds=thresholds,
        bits=bits,
        prg=prg,
        block_elements=block_elements,
        parts=three_parts(size, bits=bits) if several else (),
    )
    partial = owners.partial if manifest.blocks > 1 else frozenset()

    def alive_after(step: str) -> list[int]:
        lost = {s for s, at in owners.gone.items() if ROUNDS.index(at) <= ROUNDS.index(step)}
        return [s for s in range(size) if s not in lost]

    survivors = [seat for seat in alive_after("R2") if seat not in partial]
    answering = [seat for seat in alive_after("R4") if seat not in partial]
    if len(answering) >= thresholds.threshold:
        outcome = owners.run(manifest)
        check_sum(outcome, owners, survivors)
        assert revealed_sums(owners, manifest) == [survivors]
    else:
        with pytest.raises(TooFewOwners):
            owners.run(manifest)
        assert revealed_sums(owners, manifest) == []
    assert not owners.errors


@given(size=st.integers(3, 6), seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=30, deadline=None)
def test_repeated_late_and_reordered_messages_change_nothing(
    size: int, seed: int, data: st.DataObject
) -> None:
    owners, spool = federation(size), MemorySpool()
    manifest = manifest_for(owners.roster, block_elements=3)
    shuffle = st.randoms(use_true_random=False)
    state: OpenState = start(manifest, owners.roster)
    old: list[tuple[int, bytes]] = []
    owners.rng = CounterRandomness(seed)
    for step in ROUNDS:
        requests = [(seat, state.request(seat)) for seat in state.awaited]
        # Everything goes out twice, mixed with all that was ever sent, in any order.
        mixed = [*requests, *requests, *old]
        data.draw(shuffle).shuffle(mixed)
        state = owners.exchange(state, mixed, spool, step)
        old += requests
        closed = owners.restarted(state.close())
        state = closed if not isinstance(closed, Unmasking) else state
    assert isinstance(closed, Unmasking)
    outcome = Outcome.of(closed, spool)
    check_sum(outcome, owners, range(size))
    assert revealed_sums(owners, manifest) == [list(range(size))]
    # Owners repeated themselves word for word; what came too late for the server was refused.
    assert {(who, type(error)) for who, error in owners.errors} <= {("server", ProtocolBroken)}
    for step_messages in _by_author_and_kind(owners).values():
        assert len(step_messages) == 1


def _by_author_and_kind(owners: Federation) -> dict[tuple[int, str, int], set[object]]:
    said: dict[tuple[int, str, int], set[object]] = {}
    for seat, message in owners.sent:
        index = getattr(message, "index", 0)
        said.setdefault((seat, message.kind, index), set()).add(message)
    return said
