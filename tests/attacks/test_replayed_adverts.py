"""Attack: an advert of another job, phase or attempt, whose secret key somebody learnt."""

import pytest

from blindmerge.errors import SignatureInvalid
from blindmerge.secagg.adverts import Adverts
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import AdvertList
from blindmerge_server.states import Dealing
from support.secure_sum import federation, manifest_for

ROSTER = federation(4).roster


@pytest.mark.parametrize(
    "other",
    [
        manifest_for(ROSTER, attempt=1),
        manifest_for(ROSTER, phases=2),
        manifest_for(ROSTER, bits=48),
        manifest_for(ROSTER, prg="chacha20"),
    ],
)
def test_an_advert_is_good_for_one_manifest(other: SumManifest) -> None:
    before = federation(4)
    old, _ = before.advance(other, "R1")
    owners = federation(4)
    manifest = manifest_for(ROSTER)
    state, _ = owners.advance(manifest, "R1")
    assert isinstance(old, Dealing)
    assert isinstance(state, Dealing)
    records = {seat: state.adverts[seat].encode() for seat in range(4)}
    records[2] = old.adverts[2].encode()
    assert owners.ask(0, AdvertList(manifest.hash, Adverts.of(records))) == []
    _, error = owners.errors.pop()
    assert isinstance(error, SignatureInvalid)
    assert "org-002" in error.message
