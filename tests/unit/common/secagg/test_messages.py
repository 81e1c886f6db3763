"""Messages: one encoding, strict sizes, bounded memory; nothing else gets in."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge import canonical
from blindmerge.errors import NotCanonical, PeerInvalid, ProtocolBroken
from blindmerge.secagg.adverts import ADVERT_BYTES, Adverts
from blindmerge.secagg.messages import (
    COMMITMENT_BYTES,
    KINDS,
    SEALED_BYTES,
    AdvertList,
    Block,
    Consent,
    ConsentList,
    Deal,
    Deliveries,
    Limits,
    Message,
    MyAdvert,
    Opening,
    Propose,
    Survivors,
    encode,
    parse,
    seats_from_bytes,
    seats_to_bytes,
)

OWNERS = 11
LIMITS = Limits(OWNERS, 5000)
HASH = b"h" * 32

SEATS = st.sets(st.integers(0, OWNERS - 1)).map(lambda seats: tuple(sorted(seats)))


def _sized(size: int) -> st.SearchStrategy[bytes]:
    return st.integers(0, 255).map(lambda byte: bytes([byte]) * size)


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Propose, st.just(HASH), st.binary(max_size=50)),
    st.builds(MyAdvert, st.just(HASH), _sized(ADVERT_BYTES)),
    SEATS.map(lambda s: AdvertList(HASH, Adverts(s, bytes(ADVERT_BYTES * len(s))))),
    st.integers(0, 9).map(
        lambda n: Deal(HASH, bytes(SEALED_BYTES * n), bytes(COMMITMENT_BYTES * (n + 1)))
    ),
    st.tuples(SEATS, st.integers(0, 9)).map(
        lambda p: Deliveries(HASH, p[0], bytes(SEALED_BYTES * p[1]), bytes(COMMITMENT_BYTES * p[1]))
    ),
    st.builds(Block, st.just(HASH), st.integers(0, 2**31 - 1), st.binary(max_size=99)),
    st.builds(Survivors, st.just(HASH), SEATS),
    st.builds(Consent, st.just(HASH), _sized(64)),
    SEATS.map(lambda s: ConsentList(HASH, s, bytes(64 * len(s)))),
    st.integers(0, 20).map(lambda n: Opening(HASH, bytes(33 * n))),
)


@given(message=MESSAGES)
def test_every_message_survives_its_encoding(message: Message) -> None:
    data = encode(message, OWNERS)
    assert parse(data, LIMITS) == message
    assert encode(parse(data, LIMITS), OWNERS) == data


@given(seats=SEATS)
def test_sets_of_owners_are_bit_maps(seats: tuple[int, ...]) -> None:
    data = seats_to_bytes(seats, OWNERS)
    assert len(data) == 2
    as_number = int.from_bytes(data, "big")
    assert seats == tuple(seat for seat in range(OWNERS) if as_number >> (15 - seat) & 1)
    assert seats_from_bytes(data, OWNERS) == seats


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0", b"\0\x10"])
def test_sets_of_another_length_or_with_strangers_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        seats_from_bytes(data, OWNERS)


@given(data=st.binary(max_size=300))
@settings(max_examples=300)
def test_arbitrary_bytes_raise_documented_errors_only(data: bytes) -> None:
    with pytest.raises(PeerInvalid):
        parse(data, LIMITS)


@given(message=MESSAGES, at=st.integers(0, 10**6), byte=st.integers(1, 255), data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_messages_raise_documented_errors_or_are_other_messages(
    message: Message, at: int, byte: int, data: st.DataObject
) -> None:
    good = encode(message, OWNERS)
    bad = bytearray(good)
    bad[at % len(bad)] ^= byte
    cut = bytes(bad[: data.draw(st.integers(0, len(bad)))]) if byte % 2 else bytes(bad)
    try:
        parsed = parse(cut, LIMITS)
    except PeerInvalid:
        return
    assert encode(parsed, OWNERS) == cut


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**40)
    | st.binary(max_size=70)
    | st.text(max_size=4)
)
VALUES: st.SearchStrategy[object] = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(kind=st.sampled_from(KINDS), fields=st.lists(VALUES, max_size=4), hashed=VALUES)
@settings(max_examples=300)
def test_wrong_fields_raise_documented_errors_only(
    kind: str, fields: list[object], hashed: object
) -> None:
    for manifest_hash in (HASH, hashed):
        data = canonical.encode(["blindmerge/1", kind, manifest_hash, *fields])
        try:
            parsed = parse(data, LIMITS)
        except PeerInvalid:
            continue
        assert encode(parsed, OWNERS) == data


def test_a_message_beyond_the_limit_is_not_read() -> None:
    data = encode(Block(HASH, 0, bytes(10**6)), OWNERS)
    tracemalloc.start()
    with pytest.raises(ProtocolBroken, match="longer"):
        parse(data, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**5


@pytest.mark.parametrize(
    "filling",
    [
        b"\x00",  # numbers
        b"\x80",  # empty lists
        b"\xa0",  # empty maps
        b"\x40",  # empty bytes
        b"\x81\x80",  # lists of lists
    ],
)
@pytest.mark.parametrize("fields", [4, 6, 10**5])
def test_a_message_of_many_small_values_takes_no_more_memory_than_its_bytes(
    filling: bytes, fields: int
) -> None:
    """Python objects are a hundred times as large as their encoding, so they are never made."""
    count = 10**5
    many = b"\x9a" + count.to_bytes(4, "big") + filling * count
    head = canonical.encode(["blindmerge/1", "propose", HASH])[1:]
    data = {4: b"\x84", 6: b"\x86", 10**5: b"\x9a" + count.to_bytes(4, "big")}[fields] + head
    data += many if fields < 10 else filling * (count - 3)
    tracemalloc.start()
    with pytest.raises(PeerInvalid):
        parse(data, Limits(OWNERS, 10**7))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000


def test_a_promised_length_allocates_nothing() -> None:
    # A list of 2^32 elements, a string of 2^60 bytes: the heads lie.
    tracemalloc.start()
    for lie in (b"\x9a\xff\xff\xff\xff", b"\x83\x6cblindmerge/1\x7b\x10" + bytes(7)):
        with pytest.raises(NotCanonical):
            parse(lie, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**5
