"""The plan of a job: all that both sides must agree on before anything is computed.

A plan is a value with one canonical encoding; its SHA-256 names the job. The schema of
every contribution follows from the plan alone, never from data.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from blindmerge import canonical
from blindmerge.errors import PeerInvalid
from blindmerge.manifest import Block, Manifest
from blindmerge.merge import AnyMethod

__all__ = ["Plan"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Plan(BaseModel):
    """What a job is.

    job: its id.   base: content hash of the base checkpoint (`Checkpoint.sha256`).
    manifest: every tensor and its rule.   labels: in the order of the head's outputs.
    method: the merge method with its options.
    examples: at most so many of an owner's training examples enter its statistics.
    max_length: tokens after which a text is cut.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    version: Literal[1] = 1
    job: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    base: Sha256
    manifest: Manifest
    task: Literal["single-label"] = "single-label"
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    method: AnyMethod
    examples: Annotated[int, Field(ge=1)]
    max_length: Annotated[int, Field(ge=1)]

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("a label occurs twice")
        return labels

    @property
    def phases(self) -> tuple[Block, ...]:
        """The job as a list of phases, each one sum over the tensors of a block.

        One-shot methods run through them without looking back; with each request the owner
        gets the merged tensors of the phase before, which progressive methods build on.
        """
        return self.manifest.blocks

    def encode(self) -> bytes:
        """The canonical bytes."""
        return canonical.encode(self.model_dump())

    @property
    def sha256(self) -> str:
        """The hash of the canonical bytes."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> "Plan":
        """The plan with these canonical bytes.

        Raises NotCanonical or PeerInvalid; bytes that decode encode back to themselves.
        """
        value = canonical.decode(data)
        try:
            plan = cls.model_validate(canonical.tuples(value))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            # A peer chose these names: no control characters on a person's terminal.
            where = ascii(".".join(str(part) for part in first["loc"]))[:100]
            raise PeerInvalid(f"the plan is invalid at {where}: {first['msg']}") from error
        if plan.encode() != data:
            raise PeerInvalid("a field of the plan is left out, or a number has another type")
        return plan
