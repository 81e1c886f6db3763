"""A plan with the signature of the coordinator that made it.

Whoever reaches a server's port may send owners a request; an owner answers only requests whose
plan is signed by a coordinator that its policy pins. The signature is an Ed25519 signature of
the canonical bytes of [label, plan bytes].
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blindmerge import canonical
from blindmerge.errors import NotCanonical, ProtocolBroken, SignatureInvalid
from blindmerge.identity import SIGNATURE_BYTES, Identity, Member, verify
from blindmerge.plan import Plan

__all__ = ["SignedPlan"]

_LABEL = "blindmerge/1 signed plan"


@dataclass(frozen=True, slots=True)
class SignedPlan:
    """A plan and 64 bytes that say who stands behind it; see `verify`."""

    plan: Plan
    signature: bytes

    @classmethod
    def sign(cls, plan: Plan, identity: Identity) -> "SignedPlan":
        """The plan, signed by a coordinator."""
        return cls(plan, identity.sign(_message(plan)))

    def verify(self, coordinators: Sequence[Member]) -> Member:
        """Which of these coordinators signed the plan.   Raises SignatureInvalid if none did."""
        for member in coordinators:
            try:
                verify(member, _message(self.plan), self.signature)
            except SignatureInvalid:
                continue
            return member
        raise SignatureInvalid(
            f"job '{self.plan.job}' is not signed by a coordinator that this organisation knows",
            hint="ask who made the plan; compare its public key with the pinned ones",
        )

    def encode(self) -> bytes:
        """The canonical bytes of [label, plan bytes, signature]."""
        return canonical.encode([_LABEL, self.plan.encode(), self.signature])

    @classmethod
    def decode(cls, data: bytes) -> "SignedPlan":
        """The signed plan with these canonical bytes; the signature is not checked here.

        Raises NotCanonical or PeerInvalid; bytes that decode encode back to themselves.
        """
        try:
            record = canonical.decode_record(data, 3)
        except NotCanonical as error:
            raise ProtocolBroken(f"these bytes are no signed plan: {error.message}") from error
        match record:
            case [label, bytes() as plan, bytes() as signature] if label == _LABEL:
                if len(signature) != SIGNATURE_BYTES:
                    raise ProtocolBroken(f"the signature of a plan is not {SIGNATURE_BYTES} bytes")
                return cls(Plan.decode(plan), signature)
        raise ProtocolBroken("these bytes are no signed plan")


def _message(plan: Plan) -> bytes:
    """What is signed."""
    return canonical.encode([_LABEL, plan.encode()])
