"""Jobs of many phases: fresh keys, riding key rounds, and no way back for who dropped out."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.encoding import Layout
from blindmerge.errors import AlreadyAnswered, ProtocolBroken
from blindmerge.secagg.adverts import Advert
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import MyAdvert, Propose
from blindmerge_server.states import Collecting
from support.adversary import revealed_sums
from support.phases import run_phases
from support.secure_sum import (
    ROUNDS,
    Federation,
    check_sum,
    federation,
    manifest_for,
    three_parts,
)

PHASES = 4


def _manifests(owners: Federation, parts: Sequence[Layout] = ()) -> list[SumManifest]:
    return [
        manifest_for(owners.roster, phases=PHASES, phase=phase, parts=parts)
        for phase in range(PHASES)
    ]


@pytest.mark.parametrize("parts", [(), three_parts(4)], ids=["one part", "three parts"])
def test_three_exchanges_per_phase_after_the_first(parts: Sequence[Layout]) -> None:
    owners = federation(4)
    manifests = _manifests(owners, parts)
    outcomes = run_phases(owners, manifests)
    for outcome, manifest in zip(outcomes, manifests, strict=True):
        check_sum(outcome, owners, range(4))
        assert revealed_sums(owners, manifest) == [[0, 1, 2, 3]]
    assert not owners.errors


@given(
    victims=st.dictionaries(st.integers(0, 7), st.sampled_from(ROUNDS[2:]), max_size=3),
    phase=st.integers(0, PHASES - 1),
    parts=st.sampled_from(((), three_parts(8))),
)
@settings(max_examples=12, deadline=None)
def test_who_drops_out_of_a_phase_is_missing_from_all_later_ones(
    victims: dict[int, str], phase: int, parts: Sequence[Layout]
) -> None:
    owners = federation(8)
    manifests = _manifests(owners, parts)
    thresholds = manifest_for(owners.roster).thresholds
    victims = dict(list(victims.items())[: thresholds.dropouts])
    owners.leaving = {seat: (phase, step) for seat, step in victims.items()}
    outcomes = run_phases(owners, manifests)
    for number, (outcome, manifest) in enumerate(zip(outcomes, manifests, strict=True)):
        out = {
            seat
            for seat, step in victims.items()
            if number > phase or (number == phase and step == "R2")
        }
        present = [seat for seat in range(8) if seat not in out]
        check_sum(outcome, owners, present)
        assert revealed_sums(owners, manifest) == [present]


def test_every_phase_has_keys_of_its_own() -> None:
    owners = federation(4)
    run_phases(owners, _manifests(owners))
    adverts = [Advert.decode(m.record) for _, m in owners.sent if isinstance(m, MyAdvert)]
    assert len(adverts) == 4 * PHASES
    for name in ("sealing", "masking", "commitment", "nonce"):
        assert len({getattr(advert, name) for advert in adverts}) == 4 * PHASES


def test_no_input_of_a_phase_is_masked_before_the_one_before_was_answered() -> None:
    owners = federation(4)
    first, second = _manifests(owners)[:2]
    owners.advance(first, "R4")  # all signed, nobody answered
    state, _ = owners.advance(second, "R2", allowed=(0, 1, 2, 3))
    assert isinstance(state, Collecting)
    assert owners.deliver(0, state.request(0)) == []
    _, error = owners.errors.pop()
    assert isinstance(error, ProtocolBroken)
    assert "phase 0 is not answered" in error.message


def test_phases_come_in_order() -> None:
    owners = federation(4)
    first, second, third = _manifests(owners)[:3]
    assert owners.ask(0, Propose(second.hash, second.encoded)) == []
    assert "not in phase 0" in str(owners.errors.pop()[1])
    owners.run(first)
    assert owners.ask(0, Propose(third.hash, third.encoded)) == []
    assert "not in phase 1" in str(owners.errors.pop()[1])
    owners.run(second)
    retry = manifest_for(owners.roster, phases=PHASES, attempt=1)
    assert owners.ask(0, Propose(retry.hash, retry.encoded)) == []
    assert isinstance(owners.errors.pop()[1], AlreadyAnswered)


def test_a_phase_that_failed_is_tried_again_with_new_keys() -> None:
    owners = federation(4)
    first, second = _manifests(owners)[:2]
    check_sum(owners.run(first), owners, range(4))
    owners.advance(second, "R3")  # the server gives up before anything was opened
    again = manifest_for(owners.roster, phases=PHASES, phase=1, attempt=1)
    check_sum(owners.run(again), owners, range(4))
    assert revealed_sums(owners, second) == []
