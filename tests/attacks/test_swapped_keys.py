"""Attack: keys are moved between owners, replaced, or copied from another owner."""

import pytest

from blindmerge.errors import ProtocolBroken, SignatureInvalid
from blindmerge.secagg.adverts import Advert, Adverts
from blindmerge.secagg.keys import ExchangeKey
from blindmerge.secagg.messages import AdvertList, MyAdvert, encode
from blindmerge_server.states import Advertising, Dealing
from support.randomness import CounterRandomness
from support.secure_sum import (
    Federation,
    MemorySpool,
    check_sum,
    federation,
    identities,
    manifest_for,
)


def _adverts(owners: Federation) -> dict[int, Advert]:
    state, _ = owners.advance(manifest_for(owners.roster), "R1")
    assert isinstance(state, Dealing)
    return {seat: state.adverts[seat] for seat in state.adverts.seats}


def _refusal(owners: Federation, adverts: dict[int, Advert]) -> Exception:
    records = {seat: advert.encode() for seat, advert in adverts.items()}
    manifest = manifest_for(owners.roster)
    assert owners.ask(0, AdvertList(manifest.hash, Adverts.of(records))) == []
    return owners.errors.pop()[1]


def test_swapped_adverts_name_an_owner() -> None:
    owners = federation(4)
    adverts = _adverts(owners)
    adverts[1], adverts[2] = adverts[2], adverts[1]
    error = _refusal(owners, adverts)
    assert isinstance(error, SignatureInvalid)
    assert "org-001" in str(error)


def test_one_replaced_key_breaks_the_signature() -> None:
    known = ExchangeKey.generate(CounterRandomness("server")).public
    for field in ("sealing", "masking", "commitment", "nonce"):
        owners = federation(4)
        adverts = _adverts(owners)
        parts = {name: getattr(adverts[3], name) for name in Advert.__slots__} | {field: known}
        adverts[3] = Advert(**parts)
        error = _refusal(owners, adverts)
        assert isinstance(error, SignatureInvalid)
        assert "org-003" in str(error)


def test_an_owner_notices_that_its_own_keys_were_replaced() -> None:
    owners = federation(4)
    adverts = _adverts(owners)
    manifest = manifest_for(owners.roster)
    rng = CounterRandomness("stolen identity")
    keys = (rng.bytes(32), rng.bytes(32), rng.bytes(32), rng.bytes(32))
    adverts[0] = Advert.sign(manifest.hash, identities(4)[0], keys)  # even with a true signature
    assert isinstance(_refusal(owners, adverts), ProtocolBroken)
    del adverts[0]
    assert isinstance(_refusal(owners, adverts), ProtocolBroken)


def test_an_owner_that_copies_a_key_is_named_by_server_and_owners() -> None:
    owners = federation(4)
    adverts = _adverts(owners)
    manifest = manifest_for(owners.roster)
    copied = (adverts[1].sealing, adverts[1].masking, adverts[2].commitment, adverts[2].nonce)
    adverts[2] = Advert.sign(manifest.hash, identities(4)[2], copied)
    error = _refusal(owners, adverts)
    assert isinstance(error, ProtocolBroken)
    assert "org-002" in str(error)
    assert "org-001" in str(error)
    state: Advertising = Advertising(manifest, owners.roster, (0, 1, 2, 3), {})
    for seat in (1, 2):
        data = encode(MyAdvert(manifest.hash, adverts[seat].encode()), 4)
        after = owners.accept(state, seat, data, MemorySpool())
        assert isinstance(after, Advertising)
        state = after
    assert sorted(state.records) == [1]
    assert "org-002" in str(owners.errors.pop()[1])


def _shifted(key: bytes) -> bytes:
    """The same point in another encoding: X25519 ignores the highest bit."""
    return key[:31] + bytes([key[31] | 0x80])


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("unsound", ["zero", "low order", "copied in another encoding"])
def test_who_advertises_a_key_that_is_none_is_named_and_the_others_get_their_sum(
    which: int, unsound: str
) -> None:
    """Else no owner could mask with it, and all of them would be gone in R2."""
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    bad = {
        "zero": bytes(32),
        "low order": bytes.fromhex(
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
        ),
        "copied in another encoding": _shifted(_adverts(federation(5))[1].masking),
    }[unsound]
    adverts = _adverts(owners)
    keys = [adverts[2].sealing, adverts[2].masking, adverts[2].commitment, adverts[2].nonce]
    keys[which] = bad
    forged = Advert.sign(manifest.hash, identities(5)[2], (keys[0], keys[1], keys[2], keys[3]))
    owners = federation(5)

    def hostile(seat: int, data: bytes) -> tuple[bytes, ...]:
        told = MyAdvert(manifest.hash, forged.encode())
        return (encode(told, 5) if seat == 2 and told.kind.encode() in data[:30] else data,)

    owners.to_server = hostile
    check_sum(owners.run(manifest), owners, (0, 1, 3, 4))
    (problem,) = owners.errors
    assert problem[0] == "server"
    assert "'org-002' advertised a key" in problem[1].message
    # A server that lets it pass gets no further: owners name it too.
    owners = federation(5)
    error = _refusal(owners, _adverts(owners) | {2: forged})
    assert isinstance(error, ProtocolBroken)
    assert "'org-002' advertised a key" in error.message
