"""The report of a job over the network: what the coordinator knows of it, and no more."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blindmerge.errors import ConfigInvalid
from blindmerge.files import replacing
from blindmerge.identity import Roster
from blindmerge.plan import Masks as PlanMasks
from blindmerge.privacy.wording import guarantee
from blindmerge.signed_plan import SignedPlan
from blindmerge.tasks import Task
from blindmerge_server.report.schema import MASKS_ON, Layer, Masks, Sum, Versions
from blindmerge_server.strategy import JobRecord

__all__ = ["JobReport", "OwnerReport", "job_report", "read_job_report", "write_job_report"]

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")


class OwnerReport(BaseModel):
    """One owner of the roster."""

    model_config = _STRICT
    name: str = Field(description="as it stands in the roster")
    bytes_sent: int = Field(description="bytes of masked numbers and messages that it sent")
    missing: str | None = Field(description="since when it is out and why; null if it is in")
    published: dict[str, float] = Field(
        description="scores of the merged model on its test data, if it publishes them"
    )


class JobReport(BaseModel):
    """`report.json` of `blindmerge server merge`."""

    model_config = _STRICT
    protection: str = Field(description="what the server could see, in one sentence")
    privacy: str = Field(description="what an epsilon covers, of which data, in plain words")
    schema_version: Literal[1] = Field(description="rises when a field changes its meaning")
    created: str = Field(description="when the job ended, UTC, ISO 8601")
    versions: Versions = Field(description="versions of the coordinator's software")
    job: str = Field(description="id of the job")
    plan_sha256: str = Field(description="SHA-256 of the plan's canonical bytes")
    base_sha256: str = Field(description="content hash of the base checkpoint")
    task: Task = Field(description="what the models do")
    method: dict[str, object] = Field(description="the method's name with all its options")
    heads_kept: tuple[str, ...] = Field(
        description="tensors that each owner keeps as its own; in `merged` those of the base stand "
        "in their place, untrained"
    )
    masks: Masks = Field(description="how sums were hidden from the server")
    owners: tuple[OwnerReport, ...] = Field(description="everybody in the roster")
    sums: tuple[Sum, ...] = Field(description="the sums, in order")
    layers: tuple[Layer, ...] = Field(description="what the solve did")
    exchanges: dict[str, float] = Field(description="seconds of each exchange")
    seconds: float = Field(description="of this run of the command")


def job_report(
    signed: SignedPlan,
    roster: Roster,
    record: JobRecord,
    created: str,
    seconds: float,
    versions: Mapping[str, str],
) -> JobReport:
    """The report of a job with masks that ended well."""
    plan = signed.plan
    if not isinstance(plan.masks, PlanMasks):
        raise AssertionError("plans of a coordinator have masks")
    thresholds = plan.masks.thresholds
    return JobReport(
        protection=MASKS_ON.format(least=thresholds.quorum),
        privacy=guarantee(plan.noise),
        schema_version=1,
        created=created,
        versions=Versions(**versions),
        job=plan.job,
        plan_sha256=plan.sha256,
        base_sha256=plan.base,
        task=plan.task,
        method=plan.method.model_dump(mode="json"),
        heads_kept=tuple(sorted(plan.manifest.kept)),
        masks=Masks(
            owners=thresholds.owners,
            least_owners=thresholds.quorum,
            colluders=thresholds.colluders,
            bits=plan.masks.bits,
            roster_sha256=plan.masks.roster,
        ),
        owners=tuple(_owner(member.name, record) for member in roster.members),
        sums=tuple(
            Sum(
                blocks=tuple(plan.blocks[block].name for block in blocks),
                owners=proof.transcript.summed,
                signed=proof.transcript.signed,
                opened=proof.openers,
                transcript=f"transcripts/sum-{phase + 1:03}.cbor",
            )
            for phase, (blocks, proof) in enumerate(zip(plan.phases, record.proofs, strict=True))
        ),
        layers=tuple(Layer.of(layer) for layer in record.layers),
        exchanges=dict(record.seconds),
        seconds=seconds,
    )


def _owner(name: str, record: JobRecord) -> OwnerReport:
    missing = None
    if name in record.dropped:
        missing = f"{record.dropped[name].step}: {record.dropped[name].reason}"
    elif name not in record.sent_bytes:
        missing = "never joined"
    return OwnerReport(
        name=name,
        bytes_sent=record.sent_bytes.get(name, 0),
        missing=missing,
        published=record.scores.get(name, {}),
    )


def read_job_report(path: Path) -> JobReport:
    """What `write_job_report` wrote.   Raises ConfigInvalid if it is damaged."""
    try:
        return JobReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigInvalid(
            f"'{path}' is damaged", hint="remove it, and merge the job again: it is written anew"
        ) from error


def write_job_report(report: JobReport, path: Path) -> None:
    """Writes `report.json`, whole or not at all."""
    text = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
