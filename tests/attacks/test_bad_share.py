"""Attack: an owner deals or opens a wrong share, to spoil the sum or to frame another."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from blindmerge.errors import ShareInvalid, TooFewOwners
from blindmerge.secagg.messages import Deal, Limits, Opening, encode, parse
from blindmerge.secagg.secret import Randomness, Secret
from blindmerge.secagg.shamir import PRIME, split
from support.adversary import revealed_sums
from support.secure_sum import Federation, check_sum, federation, manifest_for


def _opens_another_share(owners: Federation, liar: int, share: bytes) -> None:
    limits = Limits.of(manifest_for(owners.roster))

    def hostile(seat: int, data: bytes) -> Sequence[bytes]:
        message = parse(data, limits)
        if seat == liar and isinstance(message, Opening):
            changed = replace(message, shares=message.shares[:33] + share + message.shares[66:])
            return (encode(changed, len(owners.roster)),)
        return (data,)

    owners.to_server = hostile


@pytest.mark.parametrize("share", [bytes(33), PRIME.to_bytes(33, "big"), b"\xff" * 33])
def test_who_opens_another_share_is_named_and_the_sum_goes_on(share: bytes) -> None:
    owners = federation(5)
    _opens_another_share(owners, 3, share)
    manifest = manifest_for(owners.roster)
    check_sum(owners.run(manifest), owners, range(5))
    (problem,) = owners.errors
    assert problem[0] == "server"
    assert isinstance(problem[1], ShareInvalid)
    assert "'org-003' opened another share than 'org-001' dealt" in problem[1].message
    assert revealed_sums(owners, manifest) == [[0, 1, 2, 3, 4]]


def test_without_a_spare_share_the_sum_ends_with_the_name() -> None:
    owners = federation(3)  # all three must answer
    _opens_another_share(owners, 2, bytes(33))
    with pytest.raises(TooFewOwners):
        owners.run(manifest_for(owners.roster))
    assert "org-002" in str(owners.errors[0][1])


def test_a_dealer_whose_share_is_not_the_committed_one_is_named_by_its_holder() -> None:
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    limits = Limits.of(manifest)

    def hostile(seat: int, data: bytes) -> Sequence[bytes]:
        message = parse(data, limits)
        if seat == 3 and isinstance(message, Deal):
            wrong = message.commitments[:64] + bytes(64) + message.commitments[128:]
            return (encode(replace(message, commitments=wrong), 5),)
        return (data,)

    owners.to_server = hostile
    # Owner 1 leaves; with four of five the others still get their sum.
    check_sum(owners.run(manifest), owners, (0, 2, 3, 4))
    (problem,) = owners.errors
    assert problem[0] == "org-001"
    assert isinstance(problem[1], ShareInvalid)
    assert "org-003" in problem[1].message
    assert revealed_sums(owners, manifest) == [[0, 2, 3, 4]]


@pytest.mark.parametrize("drops_out", [False, True])
def test_a_dealer_whose_shares_are_of_another_secret_is_named_at_the_end(
    drops_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    calls: list[Secret] = []

    def liar(
        secret: Secret, threshold: int, points: Sequence[int], rng: Randomness
    ) -> dict[int, Secret]:
        # Seat 3 is the fourth to deal, and deals b first, then s_sk.
        calls.append(secret)
        dealt = Secret(bytes(32)) if len(calls) in (7, 8) else secret
        return split(dealt, threshold, points, rng)

    monkeypatch.setattr("blindmerge_client.rounds.split", liar)
    if drops_out:
        owners.gone = {3: "R2"}
    with pytest.raises(ShareInvalid, match="org-003"):
        owners.run(manifest)
    assert len(calls) == 10
