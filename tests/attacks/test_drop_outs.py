"""Drop-outs at each round, alone and in pairs: the right sum over the survivors, or none.

Six owners with c = 1: a quorum of 4, so that any two may vanish.
"""

from itertools import combinations, product

import pytest

from blindmerge.errors import TooFewOwners
from blindmerge.secagg.manifest import Thresholds
from blindmerge_server.states import Collecting, Unmasking
from support.adversary import revealed_sums
from support.secure_sum import (
    ROUNDS,
    Federation,
    Outcome,
    check_sum,
    federation,
    manifest_for,
    three_parts,
)


def _survivors(owners: Federation, size: int) -> list[int]:
    """U3: whoever was still there when blocks were sent."""
    gone = owners.gone.items()
    lost = {seat for seat, step in gone if step in ("R0", "R1", "R2")} | owners.partial
    return [seat for seat in range(size) if seat not in lost]


@pytest.mark.parametrize("step", [*ROUNDS, "a part of R2"])
@pytest.mark.parametrize("seat", range(6))
def test_one_owner_vanishes(seat: int, step: str) -> None:
    owners = federation(6)
    manifest = manifest_for(owners.roster)
    if step in ROUNDS:
        owners.gone = {seat: step}
    else:
        owners.partial = frozenset({seat})
        owners.gone = {seat: "R3"}
    check_sum(owners.run(manifest), owners, _survivors(owners, 6))
    assert revealed_sums(owners, manifest) == [_survivors(owners, 6)]
    assert not owners.errors


@pytest.mark.parametrize("steps", list(product(ROUNDS, repeat=2)))
def test_every_pair_of_owners_vanishes(steps: tuple[str, str]) -> None:
    for pair in combinations(range(6), 2):
        owners = federation(6)
        owners.restarts = False  # 375 runs; other tests restart
        manifest = manifest_for(owners.roster)
        owners.gone = dict(zip(pair, steps, strict=True))
        check_sum(owners.run(manifest), owners, _survivors(owners, 6))
        assert revealed_sums(owners, manifest) == [_survivors(owners, 6)]
        assert not owners.errors


@pytest.mark.parametrize("steps", list(product(ROUNDS, repeat=3)))
def test_three_are_too_many(steps: tuple[str, ...]) -> None:
    owners = federation(6)
    manifest = manifest_for(owners.roster)
    owners.gone = dict(zip((1, 3, 4), steps, strict=True))
    with pytest.raises(TooFewOwners):
        owners.run(manifest)
    assert revealed_sums(owners, manifest) == []
    # Not even with a colluder.
    assert revealed_sums(owners, manifest, colluders=[0]) == []


@pytest.mark.parametrize("seats", [(2,), (0, 5)])
def test_who_vanishes_between_two_parts_has_dropped_out_of_all(seats: tuple[int, ...]) -> None:
    owners = federation(6)
    manifest = manifest_for(owners.roster, parts=three_parts(6))
    state, spool = owners.advance(manifest, "R2")
    owners.parts = (0,)
    state = owners.round(state, spool, "R2")
    assert isinstance(state, Collecting)
    assert all(state.has(seat, 0) and not state.has(seat, 1) for seat in range(6))
    owners.gone = dict.fromkeys(seats, "R2")
    owners.parts = (1, 2)
    closed = owners.restarted(owners.round(state, spool, "R2").close())
    for step in ROUNDS[3:]:
        assert not isinstance(closed, Unmasking)
        closed = owners.restarted(owners.round(closed, spool, step).close())
    assert isinstance(closed, Unmasking)
    survivors = [seat for seat in range(6) if seat not in seats]
    check_sum(Outcome.of(closed, spool), owners, survivors)
    # Also of the part that all had sent.
    assert revealed_sums(owners, manifest) == [survivors]
    assert not owners.errors


def test_the_proof_says_who_dropped_when() -> None:
    owners = federation(8, terms={"colluders": 1})
    owners.gone = {0: "R1", 3: "R2", 6: "R3"}
    manifest = manifest_for(owners.roster, thresholds=Thresholds.for_owners(8, 1))
    outcome = owners.run(manifest)
    assert outcome.transcript.dropped == {
        "R0": (),
        "R1": ("org-000",),
        "R2": ("org-003",),
        "R3": ("org-006",),
    }
