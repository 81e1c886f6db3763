"""What owners sign about a sum, and what is published with it (SPEC §6, step R3, and §8)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blindmerge import canonical
from blindmerge.errors import NotCanonical, ProtocolBroken, TooFewOwners
from blindmerge.identity import SIGNATURE_BYTES, Roster, verify
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import seats_from_bytes, seats_to_bytes

__all__ = ["Sets", "Transcript", "check_consents", "statement", "verify_transcript"]

_LABEL = "blindmerge/1 transcript"


@dataclass(frozen=True, slots=True)
class Sets:
    """The sets of one run, as seats: U1 advertised, U2 dealt shares, U3 are in the sum.

    adverts: digest of the adverts of U1.
    """

    adverts: bytes
    u1: tuple[int, ...]
    u2: tuple[int, ...]
    u3: tuple[int, ...]


def statement(manifest: SumManifest, sets: Sets) -> bytes:
    """What the owners in U3 sign."""
    owners = manifest.thresholds.owners
    maps = [seats_to_bytes(seats, owners) for seats in (sets.u1, sets.u2, sets.u3)]
    return canonical.encode(["blindmerge/1 cons", manifest.hash, sets.adverts, *maps])


def check_consents(
    manifest: SumManifest, sets: Sets, roster: Roster, signers: Sequence[int], signatures: bytes
) -> None:
    """Raises unless a quorum of U3 signed these very sets.

    signatures: one for each signer, by seat.   Raises TooFewOwners, ProtocolBroken, or
    SignatureInvalid naming whose signature is false.
    """
    strangers = sorted(set(signers) - set(sets.u3))
    if strangers:
        raise ProtocolBroken(f"'{roster.name(strangers[0])}' signed and is not in the sum")
    needed = manifest.thresholds.quorum
    if len(signers) < needed:
        raise TooFewOwners(f"{len(signers)} owners signed the survivors, {needed} must")
    signed = statement(manifest, sets)
    for place, seat in enumerate(signers):
        signature = signatures[SIGNATURE_BYTES * place : SIGNATURE_BYTES * (place + 1)]
        verify(roster.members[seat], signed, signature)


@dataclass(frozen=True, slots=True)
class Transcript:
    """Proof of who was in a sum: the sets with the signatures of at least a quorum."""

    manifest: SumManifest
    roster: Roster
    sets: Sets
    signers: tuple[int, ...]
    signatures: bytes

    def encode(self) -> bytes:
        """The canonical bytes."""
        owners = len(self.roster)
        sets = self.sets
        maps = [seats_to_bytes(s, owners) for s in (sets.u1, sets.u2, sets.u3, self.signers)]
        head = [_LABEL, self.manifest.encoded, self.roster.encode(), sets.adverts]
        return canonical.encode([*head, *maps, self.signatures])

    @property
    def summed(self) -> tuple[str, ...]:
        """Ids of the owners in the sum."""
        return tuple(self.roster.name(seat) for seat in self.sets.u3)

    @property
    def signed(self) -> tuple[str, ...]:
        """Ids of the owners that signed the sets."""
        return tuple(self.roster.name(seat) for seat in self.signers)

    @property
    def dropped(self) -> Mapping[str, tuple[str, ...]]:
        """Ids of owners that vanished, by the round in which they did."""
        stages = {
            "R0": (range(len(self.roster)), self.sets.u1),
            "R1": (self.sets.u1, self.sets.u2),
            "R2": (self.sets.u2, self.sets.u3),
            "R3": (self.sets.u3, self.signers),
        }
        return {
            step: tuple(self.roster.name(seat) for seat in sorted(set(before) - set(after)))
            for step, (before, after) in stages.items()
        }


def verify_transcript(data: bytes) -> Transcript:
    """The transcript with these bytes, if a quorum of its roster signed it.

    It speaks for the roster it contains: compare `roster.sha256` with the pinned one
    (`verify_roster`). Raises PeerInvalid, or TooFewOwners.
    """
    try:
        label, *fields = canonical.decode_record(data, 9) or [None]
    except NotCanonical as error:
        raise ProtocolBroken(f"these bytes are no transcript: {error.message}") from error
    if len(fields) != 8 or label != _LABEL:
        raise ProtocolBroken("these bytes are no transcript")
    if not all(type(field) is bytes for field in fields):
        raise ProtocolBroken("a field of the transcript is not bytes")
    raw = [field for field in fields if isinstance(field, bytes)]
    manifest, roster = SumManifest.decode(raw[0]), Roster.decode(raw[1])
    if manifest.roster != roster.sha256.hex() or manifest.thresholds.owners != len(roster):
        raise ProtocolBroken("the transcript's manifest is for another roster")
    u1, u2, u3, signers = (seats_from_bytes(part, len(roster)) for part in raw[3:7])
    if not set(u3) <= set(u2) <= set(u1):
        raise ProtocolBroken("the transcript's sets do not contain each other")
    if len(raw[2]) != 32 or len(raw[7]) != SIGNATURE_BYTES * len(signers):
        raise ProtocolBroken("a field of the transcript has the wrong length")
    transcript = Transcript(manifest, roster, Sets(raw[2], u1, u2, u3), signers, raw[7])
    check_consents(manifest, transcript.sets, roster, signers, raw[7])
    return transcript
