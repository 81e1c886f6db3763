"""Attack: owners are told different things and believe they are in one sum."""

from blindmerge.errors import ProtocolBroken, SignatureInvalid, TooFewOwners
from blindmerge.secagg.adverts import Adverts
from blindmerge.secagg.manifest import Thresholds
from blindmerge.secagg.messages import AdvertList, Propose
from blindmerge_server.states import Dealing
from support.adversary import revealed_sums
from support.secure_sum import federation, manifest_for


def test_owners_with_another_manifest_do_not_sign_for_this_one() -> None:
    # The second manifest is weaker; both are acceptable on their own.
    owners, others = federation(6), federation(6)
    strong = manifest_for(owners.roster, thresholds=Thresholds.for_owners(6, 2))
    weak = manifest_for(owners.roster, thresholds=Thresholds.for_owners(6, 1))
    state, _ = owners.advance(strong, "R1")
    other, _ = others.advance(weak, "R1")
    assert isinstance(state, Dealing)
    assert isinstance(other, Dealing)
    records = {seat: (state if seat < 3 else other).adverts[seat].encode() for seat in range(6)}
    adverts = Adverts.of(records)
    assert owners.ask(0, AdvertList(strong.hash, adverts)) == []
    error = owners.errors.pop()[1]
    assert isinstance(error, SignatureInvalid)
    assert "org-003" in error.message
    assert others.ask(5, AdvertList(weak.hash, adverts)) == []
    assert isinstance(others.errors.pop()[1], SignatureInvalid)


def test_each_group_alone_is_too_small() -> None:
    owners = federation(6)
    manifests = [manifest_for(owners.roster, prg=prg) for prg in ("aes-256-ctr", "chacha20")]
    for seat in range(6):
        manifest = manifests[seat % 2]
        assert owners.ask(seat, Propose(manifest.hash, manifest.encoded))
    for which, manifest in enumerate(manifests):
        state, _ = federation(6).advance(manifest, "R1")
        assert isinstance(state, Dealing)
        mine = {s: state.adverts[s].encode() for s in range(6) if s % 2 == which}
        own = owners.jobs[which].runs[0].state.record  # type: ignore[union-attr]
        adverts = Adverts.of(mine | {which: own})
        assert owners.ask(which, AdvertList(manifest.hash, adverts)) == []
        assert isinstance(owners.errors.pop()[1], TooFewOwners)
        assert revealed_sums(owners, manifest) == []


def test_a_manifest_with_another_hash_than_its_message_says_is_refused() -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster)
    assert owners.ask(0, Propose(b"x" * 32, manifest.encoded)) == []
    assert isinstance(owners.errors.pop()[1], ProtocolBroken)
    other_job = manifest_for(owners.roster, job="other")
    assert owners.ask(0, Propose(other_job.hash, other_job.encoded)) == []
    assert "another job" in str(owners.errors.pop()[1])
    # A message of a manifest that was never proposed.
    assert owners.ask(0, AdvertList(b"x" * 32, _no_adverts())) == []
    assert "no run" in str(owners.errors.pop()[1])


def _no_adverts() -> Adverts:
    return Adverts((), b"")
