"""Attack: a sum over one owner, or over two, is that owner's numbers."""

import pytest
from pydantic import ValidationError

from blindmerge import canonical
from blindmerge.errors import PeerInvalid, PolicyRefused, TooFewOwners
from blindmerge.identity import Roster
from blindmerge.secagg.adverts import Adverts
from blindmerge.secagg.manifest import SumManifest, Thresholds
from blindmerge.secagg.messages import AdvertList, Propose
from blindmerge_server.states import Advertising
from support.adversary import revealed_sums
from support.secure_sum import federation, manifest_for


@pytest.mark.parametrize("owners", [0, 1, 2])
def test_thresholds_for_fewer_than_three_owners_do_not_exist(owners: int) -> None:
    with pytest.raises(ValidationError):
        Thresholds(owners=owners, colluders=1, dropouts=0, holders=owners, threshold=owners)


@pytest.mark.parametrize("size", [1, 2])
def test_a_manifest_for_so_few_owners_is_refused(size: int) -> None:
    owners = federation(3)
    few = Roster(owners.roster.members[:size])
    value = canonical.decode(manifest_for(owners.roster).encoded)
    assert isinstance(value, dict)
    thresholds = {"owners": size, "colluders": 1, "dropouts": 0, "holders": size}
    data = canonical.encode(
        value | {"roster": few.sha256.hex(), "thresholds": thresholds | {"threshold": size}}
    )
    with pytest.raises(PeerInvalid):
        SumManifest.decode(data)
    assert owners.ask(0, Propose(bytes(32), data)) == []
    assert isinstance(owners.errors.pop()[1], PeerInvalid)


def test_a_list_of_one_owner_is_refused_though_the_roster_has_more() -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster)
    state, _ = owners.advance(manifest, "R0")
    assert isinstance(state, Advertising)
    (data,) = owners.deliver(0, state.request(0))
    record = owners.jobs[0].runs[0].state.record  # type: ignore[union-attr]
    assert data
    assert owners.ask(0, AdvertList(manifest.hash, Adverts((0,), record))) == []
    assert isinstance(owners.errors.pop()[1], TooFewOwners)
    assert revealed_sums(owners, manifest) == []


def test_an_owner_that_wants_five_does_not_join_a_sum_of_four() -> None:
    owners = federation(5, terms={"least_owners": 5})
    manifest = manifest_for(owners.roster)  # a quorum of 4
    assert owners.ask(0, Propose(manifest.hash, manifest.encoded)) == []
    assert isinstance(owners.errors.pop()[1], PolicyRefused)
