"""Attack: sealed shares of another run, or of another pair of owners, are delivered."""

from dataclasses import replace

from blindmerge.errors import ProtocolBroken, ShareInvalid, TooFewOwners
from blindmerge.secagg.messages import COMMITMENT_BYTES, SEALED_BYTES, Deliveries, Limits, parse
from support.adversary import revealed_sums
from support.secure_sum import Federation, federation, manifest_for


def _deliveries(attempt: int) -> tuple[Federation, Deliveries]:
    owners = federation(4)
    manifest = manifest_for(owners.roster, attempt=attempt)
    state, _ = owners.advance(manifest, "R2")
    message = parse(state.request(0), Limits.of(manifest))
    assert isinstance(message, Deliveries)
    return owners, message


def _refusal(owners: Federation, message: Deliveries) -> Exception:
    assert owners.ask(0, message) == []
    manifest = manifest_for(owners.roster)
    assert revealed_sums(owners, manifest) == []
    return owners.errors.pop()[1]


def test_shares_of_another_attempt_do_not_open() -> None:
    _, old = _deliveries(attempt=1)
    owners, _ = _deliveries(attempt=0)
    manifest = manifest_for(owners.roster)
    error = _refusal(owners, replace(old, manifest_hash=manifest.hash))
    assert isinstance(error, ShareInvalid)
    assert "org-001" in error.message


def test_shares_in_another_order_do_not_open() -> None:
    owners, message = _deliveries(attempt=0)
    parts = [message.sealed[at:][:SEALED_BYTES] for at in range(0, 3 * SEALED_BYTES, SEALED_BYTES)]
    error = _refusal(owners, replace(message, sealed=parts[1] + parts[0] + parts[2]))
    assert isinstance(error, ShareInvalid)
    assert "org-001" in error.message


def test_shares_sealed_to_somebody_else_do_not_open() -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster)
    state, _ = owners.advance(manifest, "R2")
    assert owners.deliver(0, state.request(1)) == []
    error = owners.errors.pop()[1]
    assert isinstance(error, ShareInvalid)
    assert "org-001" in error.message or "org-002" in error.message


def test_other_commitments_than_the_dealers_are_noticed() -> None:
    owners, message = _deliveries(attempt=0)
    wrong = bytes(COMMITMENT_BYTES) + message.commitments[COMMITMENT_BYTES:]
    error = _refusal(owners, replace(message, commitments=wrong))
    assert isinstance(error, ShareInvalid)
    assert "org-001" in error.message


def test_a_list_of_dealers_that_is_too_short_or_not_true_is_refused() -> None:
    owners, message = _deliveries(attempt=0)
    kept = message.sealed[:SEALED_BYTES], message.commitments[:COMMITMENT_BYTES]
    two = Deliveries(message.manifest_hash, (0, 1), *kept)
    assert isinstance(_refusal(owners, two), TooFewOwners)
    others = replace(message, seats=(1, 2, 3))
    assert isinstance(_refusal(owners, others), ProtocolBroken)
    one_less = Deliveries(message.manifest_hash, (0, 1, 2, 3), *kept)
    assert isinstance(_refusal(owners, one_less), ProtocolBroken)


def test_who_has_advertised_no_keys_has_dealt_no_shares() -> None:
    """Owners would mask with the key of whoever has the place of the absent one."""
    owners = federation(5)
    owners.gone = {4: "R0"}
    manifest = manifest_for(owners.roster)
    state, _ = owners.advance(manifest, "R2")
    message = parse(state.request(0), Limits.of(manifest))
    assert isinstance(message, Deliveries)
    error = _refusal(owners, replace(message, seats=(0, 1, 2, 3, 4)))
    assert isinstance(error, ProtocolBroken)
    assert "had not advertised keys" in error.message
