"""The manifest of one sum, and what an owner demands of it (SPEC §2).

Its SHA-256, H, enters every signature and every key derivation. One run of the protocol is
one manifest: a phase of a job, at one attempt.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blindmerge import canonical
from blindmerge.encoding import Layout
from blindmerge.errors import PolicyRefused, ProtocolBroken
from blindmerge.identity import Roster
from blindmerge.secagg.graph import (
    COMPLETE_UP_TO,
    are_regular_parameters,
    default_colluders,
    quorum,
    regular_parameters,
)
from blindmerge.secagg.masks import Prg

__all__ = ["LEAST_OWNERS", "SumManifest", "Terms", "Thresholds"]

LEAST_OWNERS = 3
"""With two owners each would learn the other's numbers from the sum."""

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")


class Thresholds(BaseModel):
    """How many owners there are and how many it takes (SPEC §7).

    owners: n, of the whole roster.   colluders: c, who may help the server.
    dropouts: d, who may vanish.   holders: k, among whom a secret is split.
    threshold: t, shares that open a secret.
    """

    model_config = _STRICT
    owners: Annotated[int, Field(ge=LEAST_OWNERS, le=2**16)]
    colluders: Annotated[int, Field(ge=1)]
    dropouts: _Count
    holders: _Count
    threshold: _Count

    @model_validator(mode="after")
    def _safe(self) -> "Thresholds":
        if self.colluders > self.owners - 2:
            raise ValueError("a sum needs two owners that do not collude")
        if self.owners <= COMPLETE_UP_TO:
            if self.holders != self.owners or self.dropouts != self.owners - self.threshold:
                raise ValueError("up to 100 owners all hold shares of all, and n - t may vanish")
            if not quorum(self.owners, self.colluders) <= self.threshold <= self.owners:
                raise ValueError("the threshold is below floor((n + c) / 2) + 1")
        elif self.quorum > self.owners - self.dropouts:
            raise ValueError("so many drop-outs leave no quorum")
        elif not are_regular_parameters(
            self.owners, self.colluders, self.dropouts, self.holders, self.threshold
        ):
            raise ValueError("so few holders or shares are not safe, or do not survive drop-outs")
        return self

    @classmethod
    def for_owners(cls, owners: int, colluders: int | None = None) -> "Thresholds":
        """The weakest safe thresholds; above 100 owners a tenth may vanish."""
        corrupt = default_colluders(owners) if colluders is None else colluders
        if owners > COMPLETE_UP_TO:
            holders, threshold = regular_parameters(owners, corrupt, owners // 10)
            return cls(
                owners=owners,
                colluders=corrupt,
                dropouts=owners // 10,
                holders=holders,
                threshold=threshold,
            )
        threshold = quorum(owners, corrupt)
        return cls(
            owners=owners,
            colluders=corrupt,
            dropouts=owners - threshold,
            holders=owners,
            threshold=threshold,
        )

    @property
    def quorum(self) -> int:
        """Owners that must survive and sign. In a complete graph the threshold."""
        if self.owners <= COMPLETE_UP_TO:
            return self.threshold
        return quorum(self.owners, self.colluders)


class SumManifest(BaseModel):
    """What every owner of a sum must have been told alike.

    job, phase, phases, attempt: which sum this is.   roster, plan, base: SHA-256 of the
    roster, the plan (method, tensors, labels...) and the base model.
    parts: what is computed, fixed and sent at a time, such as the statistic of one block of
    a model: names, shapes and exponents of the numbers, bits of the ring (the same in all
    parts), size of a block. Blocks are numbered through all parts.
    noise: parameters of the noise that owners add, by name; empty for none.
    expires: Unix time in seconds after which nobody joins.
    """

    model_config = _STRICT
    version: Literal[1] = 1
    job: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    phase: _Count
    phases: Annotated[int, Field(ge=1, lt=2**31)]
    attempt: _Count
    roster: _Sha256
    plan: _Sha256
    base: _Sha256
    parts: Annotated[tuple[Layout, ...], Field(min_length=1)]
    prg: Prg = "aes-256-ctr"
    thresholds: Thresholds
    noise: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    expires: Annotated[int, Field(ge=0, lt=2**53)]

    @model_validator(mode="after")
    def _consistent(self) -> "SumManifest":
        if self.phase >= self.phases:
            raise ValueError("the phase is beyond the last")
        if any(part.owners != self.thresholds.owners for part in self.parts):
            raise ValueError("a part is for another number of owners")
        if len({part.bits for part in self.parts}) > 1:
            raise ValueError("the parts are for rings of different width")
        return self

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The first block of every part, and at the end the number of all blocks."""
        return tuple(accumulate((part.blocks for part in self.parts), initial=0))

    @property
    def blocks(self) -> int:
        """How many blocks all parts have."""
        return self._starts[-1]

    def blocks_of(self, part: int) -> range:
        """The blocks of a part.   Raises ProtocolBroken if there is no such part."""
        if not 0 <= part < len(self.parts):
            raise ProtocolBroken(f"there is no part {part}: the sum has {len(self.parts)}")
        return range(self._starts[part], self._starts[part + 1])

    def locate(self, block: int) -> tuple[int, int]:
        """The part of a block, and its number within the part's layout.

        Raises ProtocolBroken if there is no such block.
        """
        if not 0 <= block < self.blocks:
            raise ProtocolBroken(f"there is no block {block}: the sum has {self.blocks}")
        part = bisect_right(self._starts, block) - 1
        return part, block - self._starts[part]

    def wire_bytes(self, block: int) -> int:
        """Bytes of a block on the wire.   Raises ProtocolBroken if there is no such block."""
        part, index = self.locate(block)
        return self.parts[part].wire_bytes(index)

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return canonical.encode(self.model_dump())

    @cached_property
    def hash(self) -> bytes:
        """H: the SHA-256 of the canonical bytes."""
        return hashlib.sha256(self.encoded).digest()

    @classmethod
    def decode(cls, data: bytes) -> "SumManifest":
        """The manifest with these canonical bytes.   Raises NotCanonical or PeerInvalid."""
        return _decoded(data)


# Every message of a run makes its owner read the manifest again, which may hold an exponent
# for every row of an embedding. It is immutable, so one reading serves them all.
@lru_cache(maxsize=4)
def _decoded(data: bytes) -> SumManifest:
    return canonical.decode_as(SumManifest, data, "the manifest of the sum")


@dataclass(frozen=True, slots=True)
class Terms:
    """What an owner demands of every sum of a job; the server cannot change it.

    roster: the pinned one.   plan, base: SHA-256 (hex) of what the owner approved.
    least_owners: in the sum, 3 or more.   colluders: c must be at least this; None: as many as
    the default for such a roster, so that a plan cannot do with fewer unless the owner says so.
    attempts: how often one phase may be tried.
    """

    roster: Roster
    plan: str
    base: str
    least_owners: int = LEAST_OWNERS
    colluders: int | None = None
    attempts: int = 3

    def check(self, manifest: SumManifest, now: int) -> None:
        """Raises PolicyRefused, naming the rule, unless the manifest may be run.

        now: Unix time in seconds.
        """
        thresholds = manifest.thresholds
        colluders = (
            default_colluders(len(self.roster)) if self.colluders is None else self.colluders
        )
        refusals = (
            (manifest.roster != self.roster.sha256.hex(), "another roster than the pinned one"),
            (thresholds.owners != len(self.roster), "another number of owners than the roster's"),
            (manifest.plan != self.plan, "another plan than the approved one"),
            (manifest.base != self.base, "another base model than the approved one"),
            (thresholds.colluders < colluders, f"fewer than {colluders} colluders"),
            (
                thresholds.quorum < max(self.least_owners, LEAST_OWNERS),
                f"a sum of fewer than {max(self.least_owners, LEAST_OWNERS)} owners",
            ),
            (manifest.attempt >= self.attempts, f"more than {self.attempts} attempts"),
            (manifest.expires <= now, "an expired manifest"),
        )
        for refused, reason in refusals:
            if refused:
                raise PolicyRefused(
                    f"job '{manifest.job}' asks for {reason}",
                    hint="ask the coordinator, or change the policy of this organisation",
                    told=reason,
                )
