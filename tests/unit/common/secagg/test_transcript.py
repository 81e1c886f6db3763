"""Transcripts prove who was in a sum; whatever was changed in one is noticed."""

from dataclasses import replace

import pytest

from blindmerge import canonical
from blindmerge.errors import PeerInvalid, ProtocolBroken, SignatureInvalid, TooFewOwners
from blindmerge.identity import Identity, Roster, verify_roster
from blindmerge.secagg.secret import Secret
from blindmerge.secagg.transcript import Transcript, verify_transcript
from support.secure_sum import federation, identities, manifest_for


def _transcript() -> Transcript:
    owners = federation(6)
    owners.gone = {4: "R2"}
    return owners.run(manifest_for(owners.roster)).transcript


TRANSCRIPT = _transcript()


def test_a_transcript_says_who_was_in_the_sum() -> None:
    proof = verify_transcript(TRANSCRIPT.encode())
    assert proof == TRANSCRIPT
    assert proof.summed == ("org-000", "org-001", "org-002", "org-003", "org-005")
    assert proof.dropped["R2"] == ("org-004",)
    assert proof.manifest.thresholds.threshold == 4
    verify_roster(proof.roster, federation(6).roster.sha256)


def test_it_speaks_for_its_own_roster_only() -> None:
    # A server can sign for a federation that it made up; its roster is not the pinned one.
    forged = [Identity(f"org-{seat:03d}", Secret(bytes([seat]) * 32)) for seat in range(6)]
    roster = Roster.of([identity.member for identity in forged])
    with pytest.raises(PeerInvalid, match="pinned"):
        verify_roster(roster, TRANSCRIPT.roster.sha256)
    with pytest.raises(ProtocolBroken, match="another roster"):
        verify_transcript(replace(TRANSCRIPT, roster=roster).encode())


def test_other_sets_than_the_signed_ones_are_noticed() -> None:
    sets = TRANSCRIPT.sets
    for changed in (
        replace(sets, u3=sets.u2),  # the drop-out is counted in
        replace(sets, u3=sets.u3[:-1]),  # a survivor is left out, though it signed
        replace(sets, u1=sets.u2, u2=sets.u3),
        replace(sets, adverts=bytes(32)),
        replace(sets, u2=sets.u3[:4]),
    ):
        with pytest.raises((SignatureInvalid, ProtocolBroken)):
            verify_transcript(replace(TRANSCRIPT, sets=changed).encode())


def test_another_manifest_is_noticed() -> None:
    other = manifest_for(TRANSCRIPT.roster, attempt=1)
    with pytest.raises(SignatureInvalid, match="org-000"):
        verify_transcript(replace(TRANSCRIPT, manifest=other).encode())


def test_too_few_or_false_signatures_are_noticed() -> None:
    few = replace(
        TRANSCRIPT, signers=TRANSCRIPT.signers[:3], signatures=TRANSCRIPT.signatures[: 3 * 64]
    )
    with pytest.raises(TooFewOwners, match="4 must"):
        verify_transcript(few.encode())
    false = identities(6)[1].sign(b"something else")
    swapped = TRANSCRIPT.signatures[:64] + false + TRANSCRIPT.signatures[128:]
    with pytest.raises(SignatureInvalid, match="org-001"):
        verify_transcript(replace(TRANSCRIPT, signatures=swapped).encode())


@pytest.mark.parametrize("field", range(1, 9))
def test_fields_of_a_wrong_length_or_type_are_refused(field: int) -> None:
    value = canonical.decode(TRANSCRIPT.encode())
    assert isinstance(value, list)
    for wrong in (b"", value[field][:-1], 3, None):  # type: ignore[index]
        changed = [*value[:field], wrong, *value[field + 1 :]]
        with pytest.raises(PeerInvalid):
            verify_transcript(canonical.encode(changed))


def test_other_bytes_are_no_transcript() -> None:
    for data in (b"", canonical.encode(["blindmerge/1 transcript"]), TRANSCRIPT.encode()[:-1]):
        with pytest.raises(PeerInvalid):
            verify_transcript(data)
