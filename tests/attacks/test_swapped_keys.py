"""Attack: keys are moved between owners, replaced, or copied from another owner."""

from blindmerge.errors import ProtocolBroken, SignatureInvalid
from blindmerge.secagg.adverts import Advert, Adverts
from blindmerge.secagg.keys import ExchangeKey
from blindmerge.secagg.messages import AdvertList, MyAdvert, encode
from blindmerge_server.states import Advertising, Dealing
from support.randomness import CounterRandomness
from support.secure_sum import Federation, MemorySpool, federation, identities, manifest_for


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
