"""Attack: above 100 owners, the server declares all neighbours of one owner dropped out.

No mask with another owner would then be left on what it sent. But its own is opened by its
holders only, and those who "dropped out" open nothing.
"""

import numpy as np

from blindmerge.errors import TooFewOwners
from blindmerge.secagg.adverts import Adverts
from blindmerge.secagg.messages import AdvertList, Consent, ConsentList, Survivors
from blindmerge_server.states import Collecting, Dealing
from support.adversary import known_secrets, revealed_sums
from support.secure_sum import Federation, MemorySpool, federation, manifest_for

OWNERS, VICTIM = 240, 7


def _hostile_survivors(owners: Federation) -> tuple[int, ...]:
    """The victim, and everybody with whom it shares no mask: more than a quorum."""
    manifest = manifest_for(owners.roster, block_elements=100)
    matrix = owners.masked[manifest.hash, VICTIM].adverts.holders(manifest)
    near = matrix[VICTIM] | matrix[:, VICTIM]
    return tuple(seat for seat in range(OWNERS) if seat == VICTIM or not near[seat])


def test_a_survivor_without_neighbours_keeps_its_own_mask() -> None:
    owners = federation(OWNERS)
    owners.restarts = False
    manifest = manifest_for(owners.roster, block_elements=100)
    owners.advance(manifest, "R3")
    u3 = _hostile_survivors(owners)
    assert len(u3) >= manifest.thresholds.quorum
    consents = {}
    for seat in u3:
        (answer,) = owners.ask(seat, Survivors(manifest.hash, u3))
        assert isinstance(answer, Consent)
        consents[seat] = answer.signature
    joined = b"".join(consents[seat] for seat in u3)
    for seat in u3:
        assert owners.ask(seat, ConsentList(manifest.hash, u3, joined))
    # Everybody answered, and a tenth of the owners give away all they hold.
    colluders = [seat for seat in range(OWNERS) if seat % 10 == 0]
    seeds, _ = known_secrets(owners, manifest, colluders)
    assert VICTIM not in seeds
    assert all(VICTIM not in group for group in revealed_sums(owners, manifest, colluders))


def test_an_owner_whose_holders_are_missing_gives_nothing_away() -> None:
    owners = federation(101)
    owners.restarts = False
    manifest = manifest_for(owners.roster, block_elements=100)
    state, _ = owners.advance(manifest, "R2")
    assert isinstance(state, Collecting)
    matrix = state.adverts.holders(manifest)
    # The server delivers deals of a quorum with too few of the victim's holders.
    holders = [int(seat) for seat in np.flatnonzero(matrix[VICTIM]) if seat != VICTIM]
    hidden = holders[: manifest.thresholds.holders - manifest.thresholds.threshold + 1]
    kept = {seat: deal for seat, deal in state.deals.items() if seat not in hidden}
    fewer = Collecting(manifest, owners.roster, state.adverts, kept, {})
    assert owners.deliver(VICTIM, fewer.request(VICTIM)) == []
    assert isinstance(owners.errors.pop()[1], TooFewOwners)
    assert (manifest.hash, VICTIM) not in owners.masked


def test_the_holders_of_one_owner_are_too_few_for_a_sum() -> None:
    """They could open its secrets; but the honest ones among so few may be none beside it."""
    owners = federation(101)
    owners.restarts = False
    manifest = manifest_for(owners.roster, block_elements=100)
    state, _ = owners.advance(manifest, "R1")
    assert isinstance(state, Dealing)
    matrix = state.adverts.holders(manifest)
    holders = [int(seat) for seat in np.flatnonzero(matrix[VICTIM])]
    records = {seat: state.adverts[seat].encode() for seat in holders}
    few = Adverts.of(records)
    assert len(holders) > manifest.thresholds.threshold
    assert owners.ask(VICTIM, AdvertList(manifest.hash, few)) == []
    assert "31 owners advertised keys, 56 are needed" in owners.errors.pop()[1].message
    # Nor if all have advertised keys, and these alone are said to have dealt shares.
    later = owners.round(state, MemorySpool(), "R1").close()
    assert isinstance(later, Collecting)
    kept = {seat: later.deals[seat] for seat in holders}
    fewer = Collecting(manifest, owners.roster, later.adverts, kept, {})
    assert owners.deliver(VICTIM, fewer.request(VICTIM)) == []
    assert "31 owners dealt shares, 56 are needed" in owners.errors.pop()[1].message
