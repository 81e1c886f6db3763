"""Attack: the same input is unmasked a second time, over other survivors."""

import pytest

from blindmerge.errors import AlreadyAnswered, JobAborted, ProtocolBroken, TooFewOwners
from blindmerge.secagg.messages import ConsentList, Opening, Propose, Survivors
from blindmerge_client.protocol import Receipt
from support.adversary import revealed_sums
from support.secure_sum import check_sum, federation, manifest_for


def test_a_new_attempt_after_an_answer_is_refused_after_a_restart_too() -> None:
    owners = federation(5)
    first = manifest_for(owners.roster)
    check_sum(owners.run(first), owners, range(5))
    again = manifest_for(owners.roster, attempt=1)
    for seat in range(5):
        assert owners.ask(seat, Propose(again.hash, again.encoded)) == []
        assert isinstance(owners.errors.pop()[1], AlreadyAnswered)


def test_owners_that_answered_leave_too_few_for_a_second_sum() -> None:
    # Four of five answered; the fifth never did and would join again. One colluder helps.
    owners = federation(5)
    owners.gone = {4: "R4"}
    first = manifest_for(owners.roster)
    check_sum(owners.run(first), owners, range(5))
    owners.gone = {}
    again = manifest_for(owners.roster, attempt=1)
    with pytest.raises(TooFewOwners, match="1 owners advertised"):
        owners.run(again)
    assert revealed_sums(owners, again, colluders=[0]) == []


def test_a_repeated_request_gets_the_same_answer_and_another_gets_none() -> None:
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    outcome = owners.run(manifest)
    proof = outcome.transcript
    said = [m for seat, m in owners.sent if seat == 0 and isinstance(m, Opening)]
    same = ConsentList(manifest.hash, proof.signers, proof.signatures)
    assert owners.ask(0, same) == said
    fewer = ConsentList(manifest.hash, proof.signers[:4], proof.signatures[: 4 * 64])
    assert owners.ask(0, fewer) == []
    assert isinstance(owners.errors.pop()[1], ProtocolBroken)
    assert owners.ask(0, Survivors(manifest.hash, (0, 1, 2, 3))) == []
    assert isinstance(owners.errors.pop()[1], ProtocolBroken)
    assert revealed_sums(owners, manifest) == [[0, 1, 2, 3, 4]]


def test_a_retry_after_a_signature_but_before_an_answer_is_safe() -> None:
    # All signed attempt 0 and nobody answered; attempt 1 has other survivors and is opened.
    owners = federation(5)
    first = manifest_for(owners.roster)
    owners.advance(first, "R4")
    again = manifest_for(owners.roster, attempt=1)
    owners.gone = {2: "R2"}
    check_sum(owners.run(again), owners, (0, 1, 3, 4))
    # Now the server comes back to attempt 0, whose signatures it has.
    assert all(job.state(0) != "agreed" for job in owners.jobs[:2])
    assert revealed_sums(owners, first) == []
    assert owners.ask(0, Propose(first.hash, first.encoded)) == []
    assert isinstance(owners.errors.pop()[1], AlreadyAnswered)


def test_an_old_attempt_cannot_come_back() -> None:
    owners = federation(5)
    for attempt in (1, 1, 0):
        manifest = manifest_for(owners.roster, attempt=attempt)
        owners.ask(0, Propose(manifest.hash, manifest.encoded))
    (problem,) = owners.errors
    assert isinstance(problem[1], ProtocolBroken)
    assert "newer" in problem[1].message


def test_nothing_is_answered_from_a_state_that_is_not_on_disk() -> None:
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    owners.run(manifest)
    with pytest.raises(JobAborted, match="not on disk"):
        owners.jobs[0].reply(0, Receipt(bytes(32)))
    with pytest.raises(JobAborted, match="not on disk"):
        owners.jobs[0].masker(0, Receipt(bytes(32)))
