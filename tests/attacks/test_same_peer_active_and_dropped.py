"""Attack: the server calls one owner a survivor to some and dropped out to others.

It would learn b and s_sk of that owner, and with them its numbers.
"""

from blindmerge.errors import ProtocolBroken, TooFewOwners
from blindmerge.secagg.messages import Consent, ConsentList, Survivors
from support.adversary import known_secrets, revealed_sums
from support.secure_sum import federation, manifest_for

EVERYBODY = (0, 1, 2, 3, 4)
WITHOUT_2 = (0, 1, 3, 4)


def test_no_owner_tells_both_stories() -> None:
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    owners.advance(manifest, "R3")
    for seat in WITHOUT_2:
        assert owners.ask(seat, Survivors(manifest.hash, EVERYBODY))
        assert owners.ask(seat, Survivors(manifest.hash, WITHOUT_2)) == []
        who, error = owners.errors.pop()
        assert who == owners.roster.name(seat)
        assert isinstance(error, ProtocolBroken)
        assert "two different" in error.message
    assert revealed_sums(owners, manifest) == []


def test_two_stories_find_no_quorum_each_even_with_a_colluder_in_both() -> None:
    owners = federation(5)
    manifest = manifest_for(owners.roster)
    owners.advance(manifest, "R3")
    stories = {EVERYBODY: (0, 1), WITHOUT_2: (3, 4)}
    signed: dict[tuple[int, ...], dict[int, bytes]] = {}
    for u3, believers in stories.items():
        for seat in believers:
            (answer,) = owners.ask(seat, Survivors(manifest.hash, u3))
            assert isinstance(answer, Consent)
            signed.setdefault(u3, {})[seat] = answer.signature
    for u3, believers in stories.items():
        consents = signed[u3]
        signers = tuple(sorted(consents))
        signatures = b"".join(consents[seat] for seat in signers)
        for seat in believers:
            assert owners.ask(seat, ConsentList(manifest.hash, signers, signatures)) == []
            assert isinstance(owners.errors.pop()[1], TooFewOwners)
    seeds, masking = known_secrets(owners, manifest, colluders=[0])
    assert (seeds, masking) == ({0}, {0})
    assert revealed_sums(owners, manifest, colluders=[0]) == []
