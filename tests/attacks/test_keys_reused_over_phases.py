"""Attack: an owner survives phase 0 and drops out of phase 1.

Its b of phase 0 is opened, and its s_sk of phase 1. Were s_sk the same in both phases, the
server would take both kinds of masks off what the owner sent in phase 0.
"""

import numpy as np
import pytest

from blindmerge.encoding import from_wire
from blindmerge.errors import TooFewOwners
from blindmerge.secagg.adverts import Adverts
from blindmerge.secagg.keys import ExchangeKey, block_key, pair_key
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.masks import apply_masks
from blindmerge.secagg.messages import Block
from blindmerge.secagg.secret import Randomness, Secret
from blindmerge_server.states import Unmasking
from support.adversary import known_secrets, revealed_sums
from support.secure_sum import Federation, check_sum, federation, manifest_for

VICTIM = 2


def _two_phases(owners: Federation) -> tuple[SumManifest, Unmasking, Unmasking]:
    first = manifest_for(owners.roster, phases=2, block_elements=100)
    second = manifest_for(owners.roster, phases=2, phase=1, block_elements=100)
    outcome = owners.run(first)
    check_sum(outcome, owners, range(5))
    owners.gone = {VICTIM: "R2"}  # after it dealt the shares of its new keys
    after = owners.run(second, allowed=outcome.transcript.sets.u3)
    check_sum(after, owners, (0, 1, 3, 4))
    return first, outcome.state, after.state


def _attack(owners: Federation, first: SumManifest, seed: Secret, masking: Secret) -> bool:
    """Whether these secrets turn the victim's masked block of phase 0 into its numbers."""
    (payload,) = [
        message.payload
        for seat, message in owners.sent
        if seat == VICTIM and isinstance(message, Block) and message.manifest_hash == first.hash
    ]
    adverts: Adverts = owners.masked[first.hash, VICTIM].adverts
    ring = from_wire(payload, first.parts[0].elements, 64).copy()
    plus, minus = list[Secret](), [block_key(seed, first.hash, 0)]
    for peer in (0, 1, 3, 4):
        key = pair_key(ExchangeKey(masking), adverts[peer].masking, first.hash, VICTIM, peer)
        (minus if peer > VICTIM else plus).append(block_key(key, first.hash, 0))
    apply_masks(ring, plus, minus, first.prg)
    return bool(np.array_equal(ring, first.parts[0].encode(owners.statistics[VICTIM], 0)))


def test_fresh_keys_keep_the_first_phase_closed() -> None:
    owners = federation(5)
    first, opened, later = _two_phases(owners)
    assert VICTIM in known_secrets(owners, first)[0]
    assert not _attack(owners, first, opened.seeds[VICTIM], later.masking[VICTIM])
    assert revealed_sums(owners, first) == [[0, 1, 2, 3, 4]]


def test_with_a_reused_key_the_attack_works(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the rule is for: owners here keep their exchange keys over phases.
    owners = federation(5)
    kept: dict[int, ExchangeKey] = {}
    made = 0
    generate = ExchangeKey.generate

    def keep(rng: Randomness) -> ExchangeKey:
        nonlocal made
        place = made % 10  # five owners with two keys each, in the order of seats
        made += 1
        return kept.setdefault(place, generate(rng))

    monkeypatch.setattr(ExchangeKey, "generate", keep)
    first, opened, later = _two_phases(owners)
    assert made == 20
    assert _attack(owners, first, opened.seeds[VICTIM], later.masking[VICTIM])


def test_a_dropped_owner_is_out_for_the_rest_of_the_job() -> None:
    owners = federation(5)
    _two_phases(owners)
    third = manifest_for(owners.roster, phases=4, phase=2)
    owners.gone = {}
    outcome = owners.run(third)  # a server that forgot who dropped out
    check_sum(outcome, owners, (0, 1, 3, 4))
    assert [who for who, _ in owners.errors] == [owners.roster.name(VICTIM)]
    assert "out for the rest" in owners.errors[0][1].hint


def test_owners_refuse_a_list_with_somebody_who_dropped_out_before() -> None:
    owners = federation(5)
    _two_phases(owners)
    # The victim's machine is made to forget; the others do not.
    fresh = federation(5).jobs[VICTIM]
    history = owners.jobs[0].history
    owners.jobs[VICTIM] = type(fresh)(fresh.job, fresh.identity, fresh.terms, fresh.limits, history)
    owners.gone = {}
    with pytest.raises(TooFewOwners, match="dealt shares"):
        owners.run(manifest_for(owners.roster, phases=4, phase=2))
    honest = {owners.roster.name(seat) for seat in (0, 1, 3, 4)}
    complained = {who for who, error in owners.errors if "org-002" in str(error)}
    assert complained >= honest


def test_nothing_of_a_phase_is_fixed_before_the_phase_before_is_answered() -> None:
    """Its key rounds may ride ahead; its numbers would follow from a sum that is not known."""
    owners = federation(4)
    first, second = (manifest_for(owners.roster, phases=2, phase=phase) for phase in (0, 1))
    opening, _ = owners.advance(first, "R4")
    state, spool = owners.advance(second, "R2")
    assert owners.round(state, spool, "R2") == state
    assert len(owners.errors) == 4
    assert all("phase 0 is not answered yet" in error.message for _, error in owners.errors)
    owners.errors.clear()
    owners.round(opening, spool, "R4")
    assert owners.round(state, spool, "R2").awaited == ()
    assert not owners.errors
