"""Attack: two sets U3 are to be unmasked; their difference is one owner's numbers."""

from itertools import product

import pytest

from blindmerge.errors import ProtocolBroken, SignatureInvalid, TooFewOwners
from blindmerge.secagg.messages import Consent, ConsentList, Survivors
from blindmerge.secagg.transcript import Sets, statement
from support.adversary import revealed_sums
from support.secure_sum import federation, identities, manifest_for

U3 = ((0, 1, 2, 3, 4), (0, 1, 2, 3))


@pytest.mark.parametrize("told", list(product((0, 1), repeat=3)))
def test_however_owners_are_split_one_set_is_opened_at_most(told: tuple[int, ...]) -> None:
    # Owner 0 helps the server and signs both; 1 to 3 are told one story each, 4 the first.
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    owners.advance(manifest, "R3")
    stories = dict(zip((1, 2, 3), told, strict=True)) | {4: 0}
    signed: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
    digest = owners.masked[manifest.hash, 0].adverts.digest(manifest.hash)
    for which in (0, 1):
        sets = Sets(digest, (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), U3[which])
        signed[which][0] = identities(5)[0].sign(statement(manifest, sets))
    for seat, which in stories.items():
        (answer,) = owners.ask(seat, Survivors(manifest.hash, U3[which]))
        assert isinstance(answer, Consent)
        signed[which][seat] = answer.signature
    for seat, which in stories.items():
        signers = tuple(sorted(signed[which]))
        signatures = b"".join(signed[which][s] for s in signers)
        owners.ask(seat, ConsentList(manifest.hash, signers, signatures))
    sums = revealed_sums(owners, manifest, colluders=[0])
    united = [which for which in (0, 1) if len(signed[which]) >= manifest.thresholds.quorum]
    assert len(united) <= 1
    # What is opened, if anything, is the sum over all honest owners of the one set.
    assert sums == [[seat for seat in U3[which] if seat != 0] for which in united]


def test_signatures_under_another_set_are_named() -> None:
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    owners.advance(manifest, "R3")
    signatures = {}
    for seat, which in {0: 0, 1: 0, 2: 0, 3: 1}.items():
        (answer,) = owners.ask(seat, Survivors(manifest.hash, U3[which]))
        assert isinstance(answer, Consent)
        signatures[seat] = answer.signature
    joined = b"".join(signatures[seat] for seat in range(4))
    assert owners.ask(0, ConsentList(manifest.hash, (0, 1, 2, 3), joined)) == []
    _, error = owners.errors.pop()
    assert isinstance(error, SignatureInvalid)
    assert "org-003" in error.message


def test_survivors_must_be_enough_and_true() -> None:
    for u3, kind in (
        ((0, 1, 2), TooFewOwners),  # below the quorum
        ((1, 2, 3, 4), ProtocolBroken),  # told to owner 0: it is not in it
    ):
        owners = federation(5)
        manifest = manifest_for(owners.roster)
        owners.advance(manifest, "R3")
        assert owners.ask(0, Survivors(manifest.hash, u3)) == []
        assert isinstance(owners.errors.pop()[1], kind)
        assert revealed_sums(owners, manifest) == []


def test_an_owner_that_never_dealt_cannot_be_in_the_sum() -> None:
    owners = federation(5)
    owners.gone = {4: "R1"}
    manifest = manifest_for(owners.roster)
    owners.advance(manifest, "R3")
    assert owners.ask(0, Survivors(manifest.hash, U3[0])) == []
    assert isinstance(owners.errors.pop()[1], ProtocolBroken)


def test_a_signer_outside_of_the_sum_is_refused() -> None:
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    owners.advance(manifest, "R3")
    for seat in range(4):
        assert owners.ask(seat, Survivors(manifest.hash, U3[1]))
    joined = bytes(64 * 5)
    assert owners.ask(0, ConsentList(manifest.hash, U3[0], joined)) == []
    _, error = owners.errors.pop()
    assert isinstance(error, ProtocolBroken)
    assert "org-004" in error.message
