"""The states of an owner in one run of the secure sum (SPEC §6).

A state holds what it may hold and nothing more: the sealing key dies when the shares are
opened, the masking key and the seed when the owner agrees to the survivors. `dump` and
`load` of `blindmerge.secagg.persist` carry every state over a restart.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from blindmerge.secagg.adverts import Adverts
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.secret import Secret
from blindmerge.secagg.transcript import Sets

__all__ = [
    "STATES",
    "Advertised",
    "Agreed",
    "Masked",
    "OwnerState",
    "Ready",
    "Revealed",
    "Shared",
]

Holding: TypeAlias = tuple[Secret, Secret]
"""A share of somebody's b and a share of its s_sk."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """R0 is done: the keys of this run exist and their public halves are signed.

    sealing: c_sk.   masking: s_sk.   seed: b.   record: the advert.
    """

    name: ClassVar[str] = "advertised"
    manifest: SumManifest
    seat: int
    sealing: Secret
    masking: Secret
    seed: Secret
    record: bytes


@dataclass(frozen=True, slots=True)
class Shared:
    """R1 is done: b and s_sk are split among the holders.

    own: the shares that this owner keeps.   sealed, commitments: the deal, as sent.
    """

    name: ClassVar[str] = "shared"
    manifest: SumManifest
    seat: int
    sealing: Secret
    masking: Secret
    seed: Secret
    adverts: Adverts
    own: Holding
    sealed: bytes
    commitments: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """The shares of others are opened; no part of the input is known yet.

    u2: owners that dealt.   held: shares by the seat of who dealt them, own ones included.
    """

    name: ClassVar[str] = "ready"
    manifest: SumManifest
    seat: int
    masking: Secret
    seed: Secret
    adverts: Adverts
    u2: tuple[int, ...]
    held: dict[int, Holding]


@dataclass(frozen=True, slots=True)
class Masked:
    """R2: parts of the input are fixed; their blocks may be masked and sent, again and again.

    digests: of each block, by part. Masking another input with the same keys would
    give away the difference, so a block that differs is refused after a restart too.
    """

    name: ClassVar[str] = "masked"
    manifest: SumManifest
    seat: int
    masking: Secret
    seed: Secret
    adverts: Adverts
    u2: tuple[int, ...]
    held: dict[int, Holding]
    digests: dict[int, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class Agreed:
    """R3: one set of survivors is signed, and no other will be. Own keys are gone."""

    name: ClassVar[str] = "agreed"
    manifest: SumManifest
    seat: int
    sets: Sets
    held: dict[int, Holding]
    signature: bytes


@dataclass(frozen=True, slots=True)
class Revealed:
    """R4: these shares may leave the machine; the others are gone."""

    name: ClassVar[str] = "revealed"
    manifest: SumManifest
    seat: int
    sets: Sets
    shares: Secret


OwnerState: TypeAlias = Advertised | Shared | Ready | Masked | Agreed | Revealed

STATES: dict[str, type[OwnerState]] = {
    state.name: state for state in (Advertised, Shared, Ready, Masked, Agreed, Revealed)
}
"""By name, for what is read back from disk."""
