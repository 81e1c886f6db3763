"""Who the organisations are: long-term Ed25519 identities and the roster that pins them.

The roster is exchanged out of band and its hash stands in each owner's policy; a coordinator
cannot add a member. Members have seats: their places in the order of names.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from blindmerge import canonical
from blindmerge.errors import PeerInvalid, ProtocolBroken, SignatureInvalid
from blindmerge.secagg.secret import Randomness, Secret

__all__ = ["SIGNATURE_BYTES", "Identity", "Member", "Roster", "verify", "verify_roster"]

SIGNATURE_BYTES = 64
_KEY_BYTES = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_MEMBERS = 1 << 16
_LABEL = "blindmerge/1 roster"


class Identity:
    """An organisation's long-term signing key. It prints its name only."""

    __slots__ = ("_key", "name", "public")

    def __init__(self, name: str, seed: Secret) -> None:
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(seed.reveal())
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, name: str, rng: Randomness) -> "Identity":
        """A new identity."""
        return cls(name, Secret(rng.bytes(_KEY_BYTES)))

    @property
    def seed(self) -> Secret:
        """The 32 bytes that make the key again."""
        return Secret(self._key.private_bytes_raw())

    @property
    def member(self) -> "Member":
        """What others need to know of it."""
        return Member(self.name, self.public)

    def sign(self, message: bytes) -> bytes:
        """The signature of `message`."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"<identity {self.name}>"


@dataclass(frozen=True, slots=True)
class Member:
    """One organisation: its id and its public key."""

    name: str
    public: bytes


@dataclass(frozen=True)
class Roster:
    """All organisations of a federation, sorted by id; a member's seat is its place.

    Raises PeerInvalid for an id or key that is malformed, out of order or there twice.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        if not 1 <= len(names) <= _MAX_MEMBERS:
            raise PeerInvalid("a roster has 1 to 65536 members")
        for member in self.members:
            if type(member.name) is not str or not _NAME.fullmatch(member.name):
                raise PeerInvalid(
                    "an organisation id is malformed",
                    hint="1 to 64 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
                )
            if type(member.public) is not bytes or len(member.public) != _KEY_BYTES:
                raise PeerInvalid(f"the key of '{member.name}' is not {_KEY_BYTES} bytes")
        if names != sorted(set(names)):
            raise PeerInvalid("the roster is not sorted by id, or an id occurs twice")
        if len({member.public for member in self.members}) != len(names):
            raise PeerInvalid("two members of the roster have the same key")

    @classmethod
    def of(cls, members: Sequence[Member]) -> "Roster":
        """The roster of these members, sorted."""
        return cls(tuple(sorted(members, key=lambda member: member.name)))

    def __len__(self) -> int:
        return len(self.members)

    def name(self, seat: int) -> str:
        """The id of the member at a seat."""
        return self.members[seat].name

    def names(self, seats: Sequence[int]) -> str:
        """Ids of seats for a message to a person, at most five."""
        shown = ", ".join(self.name(seat) for seat in list(seats)[:5])
        return shown + (f" and {len(seats) - 5} more" if len(seats) > 5 else "")

    def seat(self, member: Member) -> int:
        """Where a member sits.   Raises PeerInvalid if it does not, with this very key."""
        if member not in self.members:
            raise PeerInvalid(f"'{member.name}' is not in the roster with its present key")
        return self.members.index(member)

    def encode(self) -> bytes:
        """The canonical bytes."""
        return canonical.encode([_LABEL, [[m.name, m.public] for m in self.members]])

    @classmethod
    def decode(cls, data: bytes) -> "Roster":
        """The roster with these canonical bytes.   Raises NotCanonical or PeerInvalid."""
        value = canonical.decode(data)
        if not isinstance(value, list) or len(value) != 2 or value[0] != _LABEL:
            raise ProtocolBroken("these bytes are no roster")
        members = []
        for pair in value[1] if isinstance(value[1], list) else [None]:
            if not isinstance(pair, list) or len(pair) != 2:
                raise ProtocolBroken("a member of the roster is not an id and a key")
            name, public = pair
            if type(name) is not str or type(public) is not bytes:
                raise ProtocolBroken("a member of the roster is not an id and a key")
            members.append(Member(name, public))
        return cls(tuple(members))

    @cached_property
    def sha256(self) -> bytes:
        """The hash that owners pin."""
        return hashlib.sha256(self.encode()).digest()


def verify_roster(roster: Roster, pinned_sha256: bytes) -> None:
    """Raises PeerInvalid unless `roster` is the one that was pinned."""
    if roster.sha256 != pinned_sha256:
        raise PeerInvalid(
            "the roster is not the one that this organisation pinned",
            hint="compare the members with your policy; nobody else may change them",
        )


def verify(member: Member, message: bytes, signature: bytes) -> None:
    """Raises SignatureInvalid unless `member` signed `message`."""
    if not _is_signed(member.public, message, signature):
        raise SignatureInvalid(
            f"the signature of '{member.name}' is not valid",
            hint="it may have changed its key, or somebody else speaks in its name",
        )


# All three arguments are public. The memory spares simulations, where a thousand owners of
# one process check the same thousand signatures.
@lru_cache(maxsize=1 << 13)
def _is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
