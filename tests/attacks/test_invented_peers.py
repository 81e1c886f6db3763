"""Attack: the server plays the other owners itself, and so knows their masks."""

import pytest

from blindmerge.errors import SignatureInvalid
from blindmerge.identity import Identity
from blindmerge.secagg.adverts import Advert, Adverts
from blindmerge.secagg.keys import ExchangeKey
from blindmerge.secagg.messages import AdvertList
from blindmerge_server.states import Dealing
from support.adversary import revealed_sums
from support.randomness import CounterRandomness
from support.secure_sum import federation, manifest_for


@pytest.mark.parametrize("invented", [(1,), (1, 2, 3)])
def test_an_owner_that_the_server_plays_is_named(invented: tuple[int, ...]) -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster)
    state, _ = owners.advance(manifest, "R1")
    assert isinstance(state, Dealing)
    rng = CounterRandomness("server")
    records = {seat: state.adverts[seat].encode() for seat in state.adverts.seats}
    for seat in invented:
        keys = [ExchangeKey.generate(rng).public for _ in range(2)]
        forger = Identity.generate(owners.roster.name(seat), rng)
        made_up = (keys[0], keys[1], rng.bytes(32), rng.bytes(32))
        records[seat] = Advert.sign(manifest.hash, forger, made_up).encode()
    assert owners.ask(0, AdvertList(manifest.hash, Adverts.of(records))) == []
    _, error = owners.errors.pop()
    assert isinstance(error, SignatureInvalid)
    assert owners.roster.name(invented[0]) in error.message
    assert revealed_sums(owners, manifest) == []
