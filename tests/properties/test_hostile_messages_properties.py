"""Well-formed messages with arbitrary contents, between the honest ones of a whole sum.

Whatever comes, both machines raise documented errors alone, a message that is refused leaves the
state as it was, and what ends well is the exact sum of the owners that the proof names.
"""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.errors import BlindmergeError
from blindmerge.secagg.adverts import ADVERT_BYTES, Adverts
from blindmerge.secagg.messages import (
    COMMITMENT_BYTES,
    SEALED_BYTES,
    AdvertList,
    Block,
    Consent,
    ConsentList,
    Deal,
    Deliveries,
    Message,
    MyAdvert,
    Opening,
    Propose,
    Survivors,
    encode,
)
from blindmerge_server.states import OpenState
from support.adversary import revealed_sums
from support.secure_sum import Federation, MemorySpool, check_sum, federation, manifest_for

OWNERS = 4
MANIFEST = manifest_for(federation(OWNERS).roster)

_HASHES = st.sampled_from((MANIFEST.hash, MANIFEST.hash, bytes(32)))
_SEATS = st.sets(st.integers(0, OWNERS - 1)).map(lambda seats: tuple(sorted(seats)))
_COUNTS = st.integers(0, OWNERS)


def _records(seats: tuple[int, ...]) -> st.SearchStrategy[Adverts]:
    size = ADVERT_BYTES * len(seats)
    return st.binary(min_size=size, max_size=size).map(lambda data: Adverts(seats, data))


def _repeated(size: int) -> st.SearchStrategy[bytes]:
    """Any number of records of this size."""
    return st.tuples(_COUNTS, st.integers(0, 255)).map(lambda p: bytes([p[1]]) * size * p[0])


_TO_OWNER: st.SearchStrategy[Message] = st.one_of(
    st.builds(Propose, _HASHES, st.sampled_from((MANIFEST.encoded, MANIFEST.encoded[:-1], b""))),
    st.builds(AdvertList, _HASHES, _SEATS.flatmap(_records)),
    st.tuples(_HASHES, _SEATS, _COUNTS).map(
        lambda p: Deliveries(p[0], p[1], bytes(SEALED_BYTES * p[2]), bytes(COMMITMENT_BYTES * p[2]))
    ),
    st.builds(Survivors, _HASHES, _SEATS),
    _SEATS.flatmap(
        lambda s: st.builds(ConsentList, _HASHES, st.just(s), st.just(bytes(64 * len(s))))
    ),
)
_TO_SERVER: st.SearchStrategy[Message] = st.one_of(
    st.builds(MyAdvert, _HASHES, st.binary(min_size=ADVERT_BYTES, max_size=ADVERT_BYTES)),
    st.builds(Deal, _HASHES, _repeated(SEALED_BYTES), _repeated(COMMITMENT_BYTES)),
    st.builds(Block, _HASHES, st.integers(0, 3), st.binary(max_size=40)),
    st.builds(Consent, _HASHES, st.just(bytes(64))),
    st.builds(Opening, _HASHES, _repeated(33)),
)
_ANY = st.one_of(_TO_OWNER, _TO_SERVER)


class _Watched(Federation):
    """Checks that what is refused changes nothing."""

    def deliver(self, seat: int, data: bytes) -> list[bytes]:
        before, refused = self.jobs[seat].encode(), len(self.errors)
        answers = super().deliver(seat, data)
        if len(self.errors) > refused:
            assert self.jobs[seat].encode() == before
            assert answers == []
        return answers

    def accept(self, state: OpenState, seat: int, data: bytes, spool: MemorySpool) -> OpenState:
        refused = len(self.errors)
        after = super().accept(state, seat, data, spool)
        assert len(self.errors) == refused or after is state
        return after


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_arbitrary_messages_raise_documented_errors_and_change_nothing(data: st.DataObject) -> None:
    honest = federation(OWNERS)
    owners = _Watched(honest.jobs, honest.statistics)

    def mixed(_: int, message: bytes) -> Sequence[bytes]:
        others = [encode(each, OWNERS) for each in data.draw(st.lists(_ANY, max_size=2))]
        return (*others, message)

    owners.to_owner = owners.to_server = mixed
    try:
        outcome = owners.run(MANIFEST)
    except BlindmergeError:  # an owner believed a true set of survivors that was not the server's
        assert len(revealed_sums(owners, MANIFEST)) <= 1
        return
    check_sum(outcome, owners, outcome.transcript.sets.u3)
    assert revealed_sums(owners, MANIFEST) == [list(outcome.transcript.sets.u3)]
