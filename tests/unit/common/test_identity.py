"""Identities and rosters: what is pinned, what is refused."""

import pytest

from blindmerge import canonical
from blindmerge.errors import NotCanonical, PeerInvalid, SignatureInvalid
from blindmerge.identity import Identity, Member, Roster, verify, verify_roster
from support.randomness import CounterRandomness


def _members(*names: str) -> list[Member]:
    rng = CounterRandomness("members")
    return [Identity.generate(name, rng).member for name in names]


def test_the_order_of_joining_does_not_matter() -> None:
    members = _members("c", "a", "b")
    roster = Roster.of(members)
    assert roster == Roster.of(members[::-1])
    assert [roster.name(seat) for seat in range(len(roster))] == ["a", "b", "c"]
    assert roster.seat(members[0]) == 2
    assert Roster.decode(roster.encode()) == roster
    assert roster.names((0, 2)) == "a, c"
    assert Roster.of(_members(*"abcdefg")).names(range(7)) == "a, b, c, d, e and 2 more"


def test_one_other_key_is_another_roster() -> None:
    a, b, c = _members("a", "b", "c")
    pinned = Roster.of([a, b, c])
    verify_roster(Roster.of([c, b, a]), pinned.sha256)
    for other in (Roster.of([a, b]), Roster.of([a, b, Member("c", bytes(32))])):
        with pytest.raises(PeerInvalid, match="pinned"):
            verify_roster(other, pinned.sha256)


def test_a_member_is_its_id_and_its_key() -> None:
    a, b, c = _members("a", "b", "c")
    roster = Roster.of([a, b])
    for stranger in (c, Member("a", b.public)):
        with pytest.raises(PeerInvalid, match="not in the roster"):
            roster.seat(stranger)


def test_malformed_rosters_are_refused() -> None:
    a, b = _members("a", "b")
    for members, reason in (
        ((), "1 to 65536"),
        ((b, a), "sorted"),
        ((a, Member("a", b.public)), "sorted|twice"),
        ((a, Member("b", a.public)), "same key"),
        ((Member("A", a.public),), "malformed"),
        ((Member("", a.public),), "malformed"),
        ((Member("x" * 65, a.public),), "malformed"),
        ((Member("a", b"short"),), "32 bytes"),
    ):
        with pytest.raises(PeerInvalid, match=reason):
            Roster(members)


@pytest.mark.parametrize(
    "value",
    [None, [], ["blindmerge/1 roster"], ["other", []], ["blindmerge/1 roster", 3]]
    + [["blindmerge/1 roster", [entry]] for entry in (3, ["a"], [1, b""], ["a", "b"])],
)
def test_bytes_that_are_no_roster_are_refused(value: object) -> None:
    with pytest.raises(PeerInvalid):
        Roster.decode(canonical.encode(value))
    with pytest.raises(NotCanonical):
        Roster.decode(b"\xff")


def test_a_signature_of_somebody_else_names_the_alleged_author() -> None:
    rng = CounterRandomness(0)
    author, other = Identity.generate("author", rng), Identity.generate("other", rng)
    signature = author.sign(b"message")
    verify(author.member, b"message", signature)
    for member, message, forged in (
        (other.member, b"message", signature),
        (author.member, b"massage", signature),
        (author.member, b"message", signature[:-1]),
        (author.member, b"message", other.sign(b"message")),
    ):
        with pytest.raises(SignatureInvalid, match=member.name):
            verify(member, message, forged)
