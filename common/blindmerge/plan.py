"""The plan of a job: all that both sides must agree on before anything is computed.

A plan is a value with one canonical encoding; its SHA-256 names the job. The schema of
every contribution follows from the plan alone, never from data.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from blindmerge import canonical
from blindmerge.encoding import Bits, Layout, longest_layout_bytes
from blindmerge.errors import (
    BlindmergeError,
    ConfigInvalid,
    PeerInvalid,
    SchemaMismatch,
    TooFewOwners,
)
from blindmerge.identity import Roster
from blindmerge.manifest import ARCHITECTURES, Block, Manifest
from blindmerge.merge import AnyMethod, Evidence, LeastSquares
from blindmerge.privacy.accountant import check_delta
from blindmerge.privacy.mechanism import MOST_UNITS
from blindmerge.privacy.terms import REASONS, Noise, alone, gram_groups
from blindmerge.secagg.manifest import LEAST_OWNERS, SumManifest, Thresholds
from blindmerge.secagg.masks import Prg
from blindmerge.tasks import Task, check_labels

__all__ = ["Masks", "Plan", "check_width"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_LEAST_NARROW_RIDGE = 0.01  # with numbers of 32 bits
_MOST_NARROW_OWNERS = 100
_LONGEST_BYTES = 1 << 22  # a plan has a line for each tensor, perhaps 100 bytes
_REST_OF_MANIFEST_BYTES = 4096  # hashes, thresholds, parameters of the noise
_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")


class Masks(BaseModel):
    """How the sums of a job are hidden from the server (secagg/SPEC.md).

    roster: SHA-256 of the roster of owners.   thresholds: how many of them it takes.
    bits: width of the ring, 48 or 32 for smaller uploads (`check_width`).
    prg: what makes the masks.
    """

    model_config = _STRICT
    roster: Sha256
    thresholds: Thresholds
    bits: Bits = 64
    prg: Prg = "aes-256-ctr"

    @classmethod
    def of(cls, roster: Roster, colluders: int | None = None, bits: Bits = 64) -> "Masks":
        """Masks for these owners, with the weakest safe thresholds (`Thresholds.for_owners`).

        Raises TooFewOwners for fewer than three.
        """
        if len(roster) < LEAST_OWNERS:
            raise TooFewOwners(
                f"a sum under masks needs {LEAST_OWNERS} owners, the roster has {len(roster)}",
                hint="with two, each would learn the other's numbers from the sum",
            )
        thresholds = Thresholds.for_owners(len(roster), colluders)
        return cls(roster=roster.sha256.hex(), thresholds=thresholds, bits=bits)


class Plan(BaseModel):
    """What a job is.

    job: its id.   base: content hash of the base checkpoint (`Checkpoint.sha256`).
    manifest: every tensor and its rule.   task: what the model does.
    labels: in the order of the head's outputs, as the task has them (`check_labels`); none if
    owners keep their heads (`Manifest.kept`).
    method: the merge method with its options.
    examples: at most so many of an owner's training examples enter its statistics.
    max_length: tokens after which a text is cut.
    masks: how the sums are hidden from the server; "off" shows it every owner's statistic.
    noise: what hides an example within an owner's statistics (privacy/PROOF.md).
    """

    model_config = _STRICT
    version: Literal[1] = 1
    job: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    base: Sha256
    manifest: Manifest
    task: Task = "single-label"
    labels: tuple[str, ...]
    method: AnyMethod
    examples: Annotated[int, Field(ge=1)]
    max_length: Annotated[int, Field(ge=1)]
    masks: Masks | Literal["off"]
    noise: Noise | Literal["off"] = "off"

    @model_validator(mode="after")
    def _task_fits(self) -> "Plan":
        rules = ARCHITECTURES.get(self.manifest.architecture)
        if rules is None or self.task not in rules.tasks:
            raise ValueError("the model is not one for the task")
        try:
            if not self.manifest.kept:
                check_labels(self.task, self.labels)
            elif self.labels:
                raise ValueError("owners that keep their heads have labels of their own")
        except ValueError as error:
            raise ValueError(f"labels: {error}") from None
        return self

    @model_validator(mode="after")
    def _width_fits(self) -> "Plan":
        if self.masks != "off":
            check_width(self.masks.bits, self.method, self.masks.thresholds.owners)
            if self.masks.bits == 32 and self.noise != "off" and self.noise.grams is not None:
                raise ValueError("32 bits are too few for noise and what it hides")
        return self

    @model_validator(mode="after")
    def _noise_fits(self) -> "Plan":
        if self.noise != "off":
            try:
                _check_noise(self, self.noise)
            except BlindmergeError as error:
                raise ValueError(error.message) from error
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> "Plan":
        try:
            self.method.check(self.manifest)
        except ConfigInvalid as error:
            raise ValueError(error.message) from error
        return self

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """What the model is merged in, in forward order; the statistic of one is a part."""
        return self.method.blocks_of(self.manifest)

    @property
    def phases(self) -> tuple[tuple[int, ...], ...]:
        """The job as a list of phases, each one sum over the parts of some blocks, by number.

        A one-shot method is one sum: one set of owners, few exchanges. A progressive method
        has a sum per block, since what an owner sends depends on the blocks merged before.
        """
        numbers = tuple(range(len(self.blocks)))
        return tuple((n,) for n in numbers) if self.method.progressive else (numbers,)

    def sum_manifest(
        self, phase: int, parts: Sequence[Layout], *, attempt: int, expires: int
    ) -> SumManifest:
        """The manifest of the secure sum of a phase.

        parts: public exponents and shapes, one layout per block of the phase.
        expires: Unix time in seconds.
        Raises PeerInvalid if the plan has no such phase or no masks, and SchemaMismatch if
        the parts are not what the method sends.
        """
        if self.masks == "off" or not 0 <= phase < len(self.phases):
            raise PeerInvalid(f"the plan has no secure sum number {phase}")
        schemas = [dict(self.method.schema_of(self.blocks[b])) for b in self.phases[phase]]
        widths = {part.bits for part in parts}
        if [dict(part.shapes) for part in parts] != schemas or widths != {self.masks.bits}:
            raise SchemaMismatch(f"the parts of sum {phase} are not what the plan's method sends")
        return SumManifest(
            job=self.job,
            phase=phase,
            phases=len(self.phases),
            attempt=attempt,
            roster=self.masks.roster,
            plan=self.sha256,
            base=self.base,
            parts=tuple(parts),
            prg=self.masks.prg,
            thresholds=self.masks.thresholds,
            expires=expires,
        )

    @cached_property
    def longest_manifest_bytes(self) -> int:
        """No `sum_manifest` with one exponent per array, row, or row of a triangle has more."""
        parts = [longest_layout_bytes(self.method.schema_of(block)) for block in self.blocks]
        return _REST_OF_MANIFEST_BYTES + max(
            sum(parts[block] for block in phase) for phase in self.phases
        )

    def encode(self) -> bytes:
        """The canonical bytes."""
        return canonical.encode(self.model_dump())

    @cached_property
    def sha256(self) -> str:
        """The hash of the canonical bytes."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> "Plan":
        """The plan with these canonical bytes.

        Raises NotCanonical or PeerInvalid; bytes that decode encode back to themselves.
        """
        if len(data) > _LONGEST_BYTES:
            raise PeerInvalid(f"the plan is longer than {_LONGEST_BYTES:,} bytes")
        return canonical.decode_as(cls, data, "the plan")


def check_width(bits: Bits, method: AnyMethod, owners: int) -> None:
    """Raises ValueError if numbers of 32 bits are too coarse for what a method makes of sums.

    Of few owners they keep a row's public bound times 2^-16, and so about 2^-12 of its largest
    number (measured: `tests/bench/README.md`). A mean is as exact as that; equations are, if a
    ridge bounds what they make of it.
    """
    if bits != 32:
        return
    reason = None
    if owners > _MOST_NARROW_OWNERS:
        reason = f"{owners} owners need more room, the most are {_MOST_NARROW_OWNERS}"
    elif Evidence.FISHER in method.needs:
        reason = "Fisher information differs by more than that from weight to weight"
    elif getattr(method, "weighting", "equal") != "equal":
        reason = 'weighting = "tokens" makes room for the owner with the most tokens'
    elif isinstance(method, LeastSquares) and method.halves:
        reason = 'shrinkage = "two-fold" may choose too small a ridge'
    elif isinstance(method, LeastSquares) and method.ridge < _LEAST_NARROW_RIDGE:
        reason = f"its ridge of {method.ridge:g} is below {_LEAST_NARROW_RIDGE:g}"
    if reason is not None:
        raise ValueError(f"32 bits are too few for '{method.name}': {reason}; take 48 or 64")


def _check_noise(plan: Plan, noise: Noise) -> None:
    """Raises ValueError or ConfigInvalid for noise that proves less than the plan says."""
    reason = REASONS[plan.method.name]
    if reason is not None:
        raise ValueError(f"the method '{plan.method.name}' cannot run with noise: {reason}")
    if plan.method.halves:
        raise ValueError('no shrinkage = "two-fold" with noise: the halves are no releases')
    if Evidence.FISHER in plan.method.needs:
        raise ValueError(f"no share of Fisher merging with noise: {REASONS['fisher']}")
    if getattr(plan.method, "weighting", "equal") != "equal":
        raise ValueError('weighting = "tokens" would tell how many tokens an owner has')
    if plan.examples > MOST_UNITS:
        raise ValueError(f"with noise at most {MOST_UNITS} examples can be added exactly")
    check_delta(noise.delta, plan.examples)
    if noise.unit == "example" and noise.unit_examples != 1:
        raise ValueError("a unit that is an example has one example")
    if (noise.grams is not None) != (Evidence.GRAM in plan.method.needs):
        raise ValueError("noise is for Gram matrices of a method that sends them, and for no other")
    if noise.grams is not None:
        if len(noise.grams.weights) != len(gram_groups(plan.manifest)):
            raise ValueError("the noise does not have one weight for each group of layers")
        pairs = zip(gram_groups(plan.manifest), noise.grams.weights, strict=True)
        if mixed := [group.name for group, weight in pairs if weight and not alone(group)]:
            raise ValueError(f"the inputs of '{mixed[0]}' are not an example's own; average it")
        noise.terms(plan.manifest, plan.max_length)
    if noise.cost.epsilon(noise.delta) > noise.epsilon:
        raise ValueError("the statistics alone cost more than the epsilon of the plan")
