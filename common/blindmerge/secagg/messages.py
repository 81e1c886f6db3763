"""The messages of the protocol and their only encoding (SPEC §6).

A message is the canonical list [label, kind, H, fields...]. Sets of owners travel as bit
maps over the roster. `parse` bounds the length before it reads, and accepts only bytes that
`encode` makes; whether a message may come now is for the machines to say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, TypeAlias

import numpy as np

from blindmerge import canonical
from blindmerge.errors import ProtocolBroken
from blindmerge.identity import SIGNATURE_BYTES
from blindmerge.secagg.adverts import ADVERT_BYTES, Adverts
from blindmerge.secagg.keys import TAG_BYTES
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.shamir import SHARE_BYTES

__all__ = [
    "COMMITMENT_BYTES",
    "KINDS",
    "SEALED_BYTES",
    "AdvertList",
    "Block",
    "Consent",
    "ConsentList",
    "Deal",
    "Deliveries",
    "Limits",
    "Message",
    "MyAdvert",
    "Opening",
    "Propose",
    "Survivors",
    "encode",
    "kind_of",
    "parse",
    "seats_from_bytes",
    "seats_to_bytes",
]

_LABEL = "blindmerge/1"
_HASH_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""A share of b and a share of s_sk, sealed to one owner."""
COMMITMENT_BYTES = 2 * _HASH_BYTES
"""Hashes of a share of b and of a share of s_sk."""


@dataclass(frozen=True, slots=True)
class Propose:
    """Server to owner, opens R0: the manifest."""

    kind: ClassVar[str] = "propose"
    manifest_hash: bytes
    manifest: bytes


@dataclass(frozen=True, slots=True)
class MyAdvert:
    """Owner to server, R0: keys and signature, a record of `Advert`."""

    kind: ClassVar[str] = "advert"
    manifest_hash: bytes
    record: bytes


@dataclass(frozen=True, slots=True)
class AdvertList:
    """Server to owner, opens R1: U1 with its adverts."""

    kind: ClassVar[str] = "adverts"
    manifest_hash: bytes
    adverts: Adverts


@dataclass(frozen=True, slots=True)
class Deal:
    """Owner to server, R1: sealed shares and commitments to them.

    sealed: SEALED_BYTES for each holder in U1 but oneself, by seat.
    commitments: COMMITMENT_BYTES for each holder in U1, by seat.
    """

    kind: ClassVar[str] = "deal"
    manifest_hash: bytes
    sealed: bytes
    commitments: bytes


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Server to owner, opens R2: U2, and what its members dealt to this owner.

    sealed, commitments: one entry for each member of U2, but oneself, of whom this owner
    is a holder, by seat.
    """

    kind: ClassVar[str] = "deliveries"
    manifest_hash: bytes
    seats: tuple[int, ...]
    sealed: bytes
    commitments: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """Owner to server, R2: one masked block.   index: counted through all parts."""

    kind: ClassVar[str] = "block"
    manifest_hash: bytes
    index: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Survivors:
    """Server to owner, opens R3: U3, whose blocks are all there."""

    kind: ClassVar[str] = "survivors"
    manifest_hash: bytes
    seats: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Consent:
    """Owner to server, R3: its signature under U1, U2 and U3."""

    kind: ClassVar[str] = "consent"
    manifest_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class ConsentList:
    """Server to owner, opens R4: who signed, and the signatures by seat."""

    kind: ClassVar[str] = "consents"
    manifest_hash: bytes
    seats: tuple[int, ...]
    signatures: bytes


@dataclass(frozen=True, slots=True)
class Opening:
    """Owner to server, R4: one share for each member of U2 that it is a holder of, by seat:
    of b if the member is in U3, of s_sk if not.
    """

    kind: ClassVar[str] = "opening"
    manifest_hash: bytes
    shares: bytes


Message: TypeAlias = (
    Propose
    | MyAdvert
    | AdvertList
    | Deal
    | Deliveries
    | Block
    | Survivors
    | Consent
    | ConsentList
    | Opening
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a message may be before its run is known: owners in the roster, bytes."""

    owners: int
    message_bytes: int

    @classmethod
    def up_to(cls, owners: int, payload_bytes: int) -> "Limits":
        """payload_bytes: of the largest field that does not grow with the owners."""
        per_owner = max(ADVERT_BYTES, SEALED_BYTES + COMMITMENT_BYTES) + 1
        return cls(owners, max(owners * per_owner, payload_bytes) + 1024)

    @classmethod
    def of(cls, manifest: SumManifest) -> "Limits":
        """The limits of one run."""
        block_bytes = max(part.wire_bytes(0) for part in manifest.parts)
        return cls.up_to(manifest.thresholds.owners, max(block_bytes, len(manifest.encoded)))


def seats_to_bytes(seats: Sequence[int], owners: int) -> bytes:
    """A bit map over the roster, seat 0 in the highest bit of the first byte."""
    flags = np.zeros(owners, dtype=np.bool_)
    flags[list(seats)] = True
    return np.packbits(flags).tobytes()


def seats_from_bytes(data: bytes, owners: int) -> tuple[int, ...]:
    """The seats of a bit map, ascending.

    Raises ProtocolBroken for another length or bits beyond the roster.
    """
    if len(data) != -(-owners // 8):
        raise ProtocolBroken("a set of owners is not as long as the roster")
    flags = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if flags[owners:].any():
        raise ProtocolBroken("a set of owners names seats beyond the roster")
    return tuple(np.flatnonzero(flags).tolist())


def encode(message: Message, owners: int) -> bytes:
    """The canonical bytes of a message.   owners: members of the roster."""
    fields: list[object]
    match message:
        case Propose():
            fields = [message.manifest]
        case MyAdvert():
            fields = [message.record]
        case AdvertList():
            adverts = message.adverts
            fields = [seats_to_bytes(adverts.seats, owners), adverts.records]
        case Deal():
            fields = [message.sealed, message.commitments]
        case Deliveries():
            seats = seats_to_bytes(message.seats, owners)
            fields = [seats, message.sealed, message.commitments]
        case Block():
            fields = [message.index, message.payload]
        case Survivors():
            fields = [seats_to_bytes(message.seats, owners)]
        case Consent():
            fields = [message.signature]
        case ConsentList():
            fields = [seats_to_bytes(message.seats, owners), message.signatures]
        case Opening():
            fields = [message.shares]
    return canonical.encode([_LABEL, message.kind, message.manifest_hash, *fields])


def parse(data: bytes, limits: Limits) -> Message:
    """The message with these bytes.

    Raises NotCanonical or ProtocolBroken; allocates the bytes of the fields once and the seats of
    the roster, and nothing if len(data) exceeds the limit.
    """
    if type(data) is not bytes or len(data) > limits.message_bytes:
        raise ProtocolBroken(
            f"a message is longer than the {limits.message_bytes} bytes that the run allows"
        )
    # Every owner gets the same bytes of the lists; a thousand owners of one process share
    # what they parse to. Nothing else is worth keeping, least of all blocks.
    if data.startswith(_SHARED_PREFIXES):
        return _parse_shared(data, limits)
    return _parse(data, limits)


def kind_of(data: bytes) -> str | None:
    """The kind of a message, from its first bytes; None if it is of no known kind."""
    return next((kind for kind, start in _STARTS.items() if data.startswith(start)), None)


@lru_cache(maxsize=2)
def _parse_shared(data: bytes, limits: Limits) -> Message:
    return _parse(data, limits)


def _parse(data: bytes, limits: Limits) -> Message:
    value = canonical.decode_record(data, _MOST_FIELDS)
    if len(value) < 3 or value[0] != _LABEL:
        raise ProtocolBroken("these bytes are no message of this protocol")
    _, kind, manifest_hash, *fields = value
    if type(kind) is not str or kind not in _PARSERS:
        raise ProtocolBroken("a message is of no known kind")
    count, read = _PARSERS[kind]
    if len(fields) != count:
        raise ProtocolBroken(f"a message of kind '{kind}' has {count} fields")
    return read(_sized(manifest_hash, _HASH_BYTES), fields, limits)


def _bytes(value: canonical.Value) -> bytes:
    if type(value) is not bytes:
        raise ProtocolBroken("a field of a message must be bytes")
    return value


def _sized(value: canonical.Value, size: int) -> bytes:
    data = _bytes(value)
    if len(data) != size:
        raise ProtocolBroken(f"a field of a message has {len(data)} bytes instead of {size}")
    return data


def _multiple(value: canonical.Value, size: int) -> bytes:
    data = _bytes(value)
    if len(data) % size:
        raise ProtocolBroken(f"a field of a message is no multiple of {size} bytes")
    return data


def _seats(value: canonical.Value, limits: Limits) -> tuple[int, ...]:
    return seats_from_bytes(_bytes(value), limits.owners)


_Fields: TypeAlias = list[canonical.Value]


def _propose(manifest_hash: bytes, fields: _Fields, _: Limits) -> Message:
    return Propose(manifest_hash, _bytes(fields[0]))


def _my_advert(manifest_hash: bytes, fields: _Fields, _: Limits) -> Message:
    return MyAdvert(manifest_hash, _sized(fields[0], ADVERT_BYTES))


def _advert_list(manifest_hash: bytes, fields: _Fields, limits: Limits) -> Message:
    seats = _seats(fields[0], limits)
    return AdvertList(manifest_hash, Adverts(seats, _sized(fields[1], ADVERT_BYTES * len(seats))))


def _deal(manifest_hash: bytes, fields: _Fields, _: Limits) -> Message:
    sealed = _multiple(fields[0], SEALED_BYTES)
    return Deal(manifest_hash, sealed, _multiple(fields[1], COMMITMENT_BYTES))


def _deliveries(manifest_hash: bytes, fields: _Fields, limits: Limits) -> Message:
    sealed = _multiple(fields[1], SEALED_BYTES)
    commitments = _sized(fields[2], COMMITMENT_BYTES * (len(sealed) // SEALED_BYTES))
    return Deliveries(manifest_hash, _seats(fields[0], limits), sealed, commitments)


def _block(manifest_hash: bytes, fields: _Fields, _: Limits) -> Message:
    index = fields[0]
    if type(index) is not int or not 0 <= index < 1 << 31:
        raise ProtocolBroken("the index of a block is no small number")
    return Block(manifest_hash, index, _bytes(fields[1]))


def _survivors(manifest_hash: bytes, fields: _Fields, limits: Limits) -> Message:
    return Survivors(manifest_hash, _seats(fields[0], limits))


def _consent(manifest_hash: bytes, fields: _Fields, _: Limits) -> Message:
    return Consent(manifest_hash, _sized(fields[0], SIGNATURE_BYTES))


def _consent_list(manifest_hash: bytes, fields: _Fields, limits: Limits) -> Message:
    seats = _seats(fields[0], limits)
    return ConsentList(manifest_hash, seats, _sized(fields[1], SIGNATURE_BYTES * len(seats)))


def _opening(manifest_hash: bytes, fields: _Fields, _: Limits) -> Message:
    return Opening(manifest_hash, _multiple(fields[0], SHARE_BYTES))


# kind: how many fields, and who reads them
_PARSERS: Mapping[str, tuple[int, Callable[[bytes, _Fields, Limits], Message]]] = {
    "propose": (1, _propose),
    "advert": (1, _my_advert),
    "adverts": (2, _advert_list),
    "deal": (2, _deal),
    "deliveries": (3, _deliveries),
    "block": (2, _block),
    "survivors": (1, _survivors),
    "consent": (1, _consent),
    "consents": (2, _consent_list),
    "opening": (1, _opening),
}
_MOST_FIELDS = 3 + max(count for count, _ in _PARSERS.values())
KINDS = tuple(_PARSERS)
"""All kinds, in the order of the protocol."""

# A list of up to 23 items, and a text of up to 23 bytes, each begin with one byte of their own.
_STARTS: Mapping[str, bytes] = {
    kind: canonical.encode([_LABEL, kind] + [0] * (count + 1))[: len(_LABEL) + len(kind) + 3]
    for kind, (count, _) in _PARSERS.items()
}
_SHARED_PREFIXES = (_STARTS["adverts"], _STARTS["consents"])
