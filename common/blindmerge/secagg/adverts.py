"""Adverts: the keys of a run, signed by their owner (SPEC §6, step R0)."""

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from blindmerge import canonical
from blindmerge.errors import ProtocolBroken
from blindmerge.identity import SIGNATURE_BYTES, Identity, Roster, verify
from blindmerge.secagg.graph import Holders, draw_holders
from blindmerge.secagg.keys import KEY_BYTES, check_public
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.secret import Secret

__all__ = ["ADVERT_BYTES", "Advert", "Adverts", "Keys", "check_adverts", "commit_to_seed"]

Keys: TypeAlias = tuple[bytes, bytes, bytes, bytes]

_RECORD = struct.Struct(f"{KEY_BYTES}s" * 4 + f"{SIGNATURE_BYTES}s")
ADVERT_BYTES = _RECORD.size


@dataclass(frozen=True, slots=True)
class Advert:
    """What one owner says at the start of a run, a record of 192 bytes.

    sealing: its X25519 key for shares (c_pk).   masking: its X25519 key for masks (s_pk).
    commitment: hash of its self-mask seed b.   nonce: draws the holders of its shares.
    """

    sealing: bytes
    masking: bytes
    commitment: bytes
    nonce: bytes
    signature: bytes

    @classmethod
    def sign(cls, manifest_hash: bytes, identity: Identity, keys: "Keys") -> "Advert":
        """The signed advert of `identity`; keys: sealing, masking, commitment, nonce."""
        return cls(*keys, identity.sign(_statement(manifest_hash, identity.name, keys)))

    def encode(self) -> bytes:
        """The record."""
        parts = (self.sealing, self.masking, self.commitment, self.nonce, self.signature)
        return b"".join(parts)

    @classmethod
    def decode(cls, record: bytes) -> "Advert":
        """The advert of a record of ADVERT_BYTES."""
        return cls(*_RECORD.unpack(record))

    def verify(self, manifest_hash: bytes, roster: Roster, seat: int) -> None:
        """Raises SignatureInvalid unless the member at `seat` signed it for this manifest, and
        ProtocolBroken, naming it, if nobody can agree on a secret with its keys.
        """
        member = roster.members[seat]
        keys = (self.sealing, self.masking, self.commitment, self.nonce)
        verify(member, _statement(manifest_hash, member.name, keys), self.signature)
        for key in (self.sealing, self.masking):
            try:
                check_public(key)
            except ProtocolBroken as error:
                raise ProtocolBroken(f"'{member.name}' advertised {error.message}") from error


def _statement(manifest_hash: bytes, name: str, keys: Keys) -> bytes:
    return canonical.encode(["blindmerge/1 adv", manifest_hash, name, *keys])


@dataclass(frozen=True)
class Adverts:
    """The adverts of the owners in U1, by seat; records in the order of seats."""

    seats: tuple[int, ...]
    records: bytes

    @classmethod
    def of(cls, records: Mapping[int, bytes]) -> "Adverts":
        """From the record of each seat."""
        seats = tuple(sorted(records))
        return cls(seats, b"".join(records[seat] for seat in seats))

    def __getitem__(self, seat: int) -> Advert:
        at = ADVERT_BYTES * bisect_left(self.seats, seat)
        return Advert.decode(self.records[at : at + ADVERT_BYTES])

    def digest(self, manifest_hash: bytes) -> bytes:
        """What stands for U1, keys included, in signatures and key derivations."""
        seats = np.array(self.seats, dtype=">u4").tobytes()
        value = ["blindmerge/1 adverts", manifest_hash, seats, self.records]
        return hashlib.sha256(canonical.encode(value)).digest()

    def holders(self, manifest: SumManifest) -> Holders:
        """Who holds whose shares."""
        thresholds = manifest.thresholds
        return _holders(self, manifest.hash, thresholds.owners, thresholds.holders)


# Not per owner: the matrix depends on public values only, every step needs it again, and in
# a simulation a thousand owners need the same one.
@lru_cache(maxsize=4)
def _holders(adverts: Adverts, manifest_hash: bytes, owners: int, holders: int) -> Holders:
    nonces = {seat: adverts[seat].nonce for seat in adverts.seats}
    return draw_holders(manifest_hash, nonces, owners, holders)


# Public values only; a thousand owners of one process check the same adverts.
@lru_cache(maxsize=2)
def check_adverts(manifest_hash: bytes, roster: Roster, adverts: Adverts) -> None:
    """Raises SignatureInvalid or ProtocolBroken, naming the owner, for a false advert."""
    masking: dict[bytes, int] = {}
    for seat in adverts.seats:
        advert = adverts[seat]
        advert.verify(manifest_hash, roster, seat)
        for key in (advert.sealing, advert.masking):
            other = masking.setdefault(key, seat)
            if other != seat or advert.sealing == advert.masking:
                raise ProtocolBroken(
                    f"'{roster.name(seat)}' advertised a key that '{roster.name(other)}' has"
                )


def commit_to_seed(seed: Secret, manifest_hash: bytes, seat: int) -> bytes:
    """The commitment to a self-mask seed b that an advert carries."""
    value = ["blindmerge/1 seed", manifest_hash, seat, seed.reveal()]
    return hashlib.sha256(canonical.encode(value)).digest()
