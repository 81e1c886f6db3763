"""Signed plans: one encoding, and a signature that only its coordinator can make."""

import json
from pathlib import Path

import cbor2
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blindmerge import canonical
from blindmerge.errors import BlindmergeError, ProtocolBroken, SignatureInvalid
from blindmerge.identity import Identity, Member
from blindmerge.secagg.secret import Secret
from blindmerge.signed_plan import SignedPlan
from support.plans import make_plan
from support.randomness import CounterRandomness

VECTOR = json.loads(
    (Path(__file__).parents[2] / "vectors" / "signed_plan.json").read_text(encoding="utf-8")
)
COORDINATOR = Identity.generate("coordinator", CounterRandomness("coordinator"))
STRANGER = Identity.generate("coordinator", CounterRandomness("stranger"))
LABEL = "blindmerge/1 signed plan"


def test_the_vector_is_what_we_sign() -> None:
    """The file was made with an Ed25519 of plain integers (RFC 8032, section 5.1)."""
    coordinator = Identity("coordinator", Secret(bytes.fromhex(VECTOR["seed"])))
    signed = SignedPlan.decode(bytes.fromhex(VECTOR["signed"]))
    assert coordinator.public.hex() == VECTOR["public"]
    assert SignedPlan.sign(signed.plan, coordinator) == signed
    assert signed.verify([coordinator.member]) == coordinator.member


def test_the_failing_twin_of_the_vector_is_refused() -> None:
    """Another `examples` under the same signature."""
    signed = SignedPlan.decode(bytes.fromhex(VECTOR["changed"]))
    with pytest.raises(SignatureInvalid):
        signed.verify([Member("coordinator", bytes.fromhex(VECTOR["public"]))])


def test_a_second_implementation_reads_and_verifies() -> None:
    plan = make_plan()
    label, encoded, signature = cbor2.loads(SignedPlan.sign(plan, COORDINATOR).encode())
    assert (label, encoded) == (LABEL, plan.encode())
    key = Ed25519PublicKey.from_public_bytes(COORDINATOR.public)
    key.verify(signature, cbor2.dumps([label, encoded], canonical=True))
    with pytest.raises(InvalidSignature):
        key.verify(signature, encoded)


def test_the_coordinator_is_found_among_several() -> None:
    signed = SignedPlan.sign(make_plan(), COORDINATOR)
    assert signed.verify([STRANGER.member, COORDINATOR.member]) == COORDINATOR.member


@pytest.mark.parametrize("pinned", [[], [STRANGER.member]], ids=["nobody", "a stranger"])
def test_a_plan_that_no_pinned_coordinator_signed_is_refused(pinned: list[Member]) -> None:
    with pytest.raises(SignatureInvalid, match="not signed by a coordinator"):
        SignedPlan.sign(make_plan(), COORDINATOR).verify(pinned)


def test_one_signature_does_not_serve_two_plans() -> None:
    signed = SignedPlan.sign(make_plan(), COORDINATOR)
    other = SignedPlan(make_plan(examples=999), signed.signature)
    with pytest.raises(SignatureInvalid):
        other.verify([COORDINATOR.member])


def test_bytes_that_decode_encode_back_to_themselves() -> None:
    data = SignedPlan.sign(make_plan(), COORDINATOR).encode()
    assert SignedPlan.decode(data).encode() == data


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [LABEL],
        [LABEL, make_plan().encode(), b"\0" * 63],
        [LABEL, make_plan().encode(), "\0" * 64],
        [LABEL, "plan", b"\0" * 64],
        ["blindmerge/1 roster", make_plan().encode(), b"\0" * 64],
        [LABEL, make_plan().encode(), b"\0" * 64, None],
    ],
    ids=["nothing", "empty", "short", "short signature", "text", "no plan", "label", "long"],
)
def test_other_values_are_refused(value: canonical.Value) -> None:
    with pytest.raises(ProtocolBroken):
        SignedPlan.decode(canonical.encode(value))


def test_bytes_after_the_end_are_refused() -> None:
    data = SignedPlan.sign(make_plan(), COORDINATOR).encode()
    for broken in (data + b"\0", data[:-1], b""):
        with pytest.raises(BlindmergeError):
            SignedPlan.decode(broken)
