"""The report of a run, `report.json`: a documented and versioned schema.

The first fields say what the server could see. Every field explains itself in
`report.schema.json`, which is made from these models and shipped beside this file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from blindmerge.adapter import AdapterReport
from blindmerge.encoding import Bits
from blindmerge.files import replacing
from blindmerge.merge import LayerReport
from blindmerge.tasks import Task

__all__ = [
    "MASKS_OFF",
    "MASKS_ON",
    "DataScore",
    "Examples",
    "Job",
    "Kind",
    "Layer",
    "Masks",
    "Method",
    "Missing",
    "Owner",
    "Report",
    "Seconds",
    "Sum",
    "SystemScores",
    "Versions",
    "report_json_schema",
    "write_report",
]

MASKS_OFF = "masks off: the server saw each owner's statistics"
MASKS_ON = "masks on: the server saw only sums of statistics, over {least} owners or more"

Kind: TypeAlias = Literal["own", "merged", "simulation-only"]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Duration: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Score: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")


class Versions(BaseModel):
    """What computed the numbers."""

    model_config = _STRICT
    blindmerge: str = Field(description="version of blindmerge")
    flwr: str = Field(description="version of Flower, which carried the messages")
    torch: str = Field(description="version of PyTorch")
    transformers: str = Field(description="version of transformers")


class Method(BaseModel):
    """One merge method of the run, each a plan of its own."""

    model_config = _STRICT
    id: str = Field(description="what `sums`, `layers`, `bytes_sent` and `scores` call it")
    role: Literal["chosen", "comparison"] = Field(
        description="chosen: its model is the result; comparison: shown beside it"
    )
    # Not `AnyMethod`: a new option of a method is no new version of this schema.
    options: dict[str, JsonValue] = Field(description="the method's name with all its options")
    plan_sha256: Sha256 = Field(description="SHA-256 of the plan's canonical bytes")


class Masks(BaseModel):
    """The secure sums of the job (secagg/SPEC.md)."""

    model_config = _STRICT
    owners: Count = Field(description="owners in the roster")
    least_owners: Count = Field(description="owners that must stay to the end, or there is no sum")
    colluders: Count = Field(description="so many owners may help the server without effect")
    bits: Bits = Field(description="width of the numbers under masks")
    roster_sha256: Sha256 = Field(description="hash of the roster that owners pin")


class Job(BaseModel):
    """What was merged."""

    model_config = _STRICT
    name: str = Field(description="id of the job")
    base_sha256: Sha256 = Field(description="content hash of the base checkpoint")
    task: Task = Field(description="what the models do")
    metrics: dict[str, str] = Field(
        description="the scores of the task: what `scores` calls each, and what people call it; "
        "the first one says which merged model is best"
    )
    labels: tuple[str, ...] = Field(
        description="label names, in the order of the head's outputs; none if owners keep heads"
    )
    examples: Count = Field(
        description="at most so many training examples entered an owner's statistics"
    )
    max_length: Count = Field(description="tokens after which a text was cut")
    methods: tuple[Method, ...] = Field(description="the chosen method, then the comparisons")
    masks: Masks | None = Field(description="how sums were hidden from the server; null if not")


class Examples(BaseModel):
    """How many labelled texts an owner has."""

    model_config = _STRICT
    train: Count = Field(description="texts to train on")
    validation: Count = Field(description="texts to choose with")
    test: Count = Field(description="texts of the scores")


class Missing(BaseModel):
    """Why an owner is not in the result."""

    model_config = _STRICT
    method: str = Field(description="id of the method during which the owner went missing")
    step: str = Field(description="what it was asked for when it went missing")
    reason: str = Field(description="what happened, in one sentence")


class Owner(BaseModel):
    """An organisation that took part."""

    model_config = _STRICT
    name: str = Field(description="the owner's name in the federation file")
    labels: tuple[str, ...] = Field(description="label names of its data")
    examples: Examples = Field(description="its labelled texts, by split")
    bytes_sent: dict[str, Count] = Field(
        description="bytes of the statistics that it sent, by id of the method"
    )
    missing: Missing | None = Field(description="since when it is missing and why, or null")


class Sum(BaseModel):
    """One sum over owners."""

    model_config = _STRICT
    blocks: tuple[str, ...] = Field(description="parts of the model that the sum merged")
    owners: tuple[str, ...] = Field(description="names of the owners in the sum")
    signed: tuple[str, ...] | None = Field(
        description="owners that signed who is in the sum; null without masks"
    )
    opened: tuple[str, ...] | None = Field(
        description="owners that opened the masks of the sum; null without masks"
    )
    transcript: str | None = Field(
        description="file with the signatures, for `blindmerge verify-transcript`, relative to "
        "the report's folder; null without masks and for comparisons"
    )


class Layer(BaseModel):
    """What the solve did with layers that share their input."""

    model_config = _STRICT
    block: str = Field(description="part of the model that the layers belong to")
    layers: tuple[str, ...] = Field(description="names of the layers")
    rows: Count = Field(description="rows of all owners together in the Gram matrix")
    condition_number: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        description="of the scaled matrix that was factorised, 1-norm; null if none was"
    )
    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        description="the ridge that was used, after raises; null if none was"
    )
    residual: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        description="of the equations, relative; null if none were solved"
    )
    fallback: str | None = Field(description="why the layers were averaged instead, or null")

    @classmethod
    def of(cls, report: LayerReport) -> "Layer":
        """The same as the solve reported it."""
        return cls(
            block=report.block,
            layers=report.layers,
            rows=report.rows,
            condition_number=report.condition_number,
            ridge=report.ridge,
            residual=report.residual,
            fallback=report.fallback,
        )


class Seconds(BaseModel):
    """Where the time went, by the wall clock."""

    model_config = _STRICT
    fetch: Duration = Field(description="fetching models and texts; 0 if they were there")
    fine_tune: Duration = Field(description="fine-tuning at all owners")
    methods: dict[str, Duration] = Field(description="statistics, sums and solve, by method id")
    exchanges: dict[str, dict[str, Duration]] = Field(
        description="the same for each thing that owners were asked for, by method id"
    )
    comparisons: Duration = Field(description="making what only a simulation can compare with")
    evaluate: Duration = Field(description="scoring every system on every owner's test data")
    total: Duration = Field(description="the whole run")


class DataScore(BaseModel):
    """A system's scores on one owner's test data."""

    model_config = _STRICT
    data: str = Field(description="name of the owner whose test data it is")
    metrics: dict[str, Score] = Field(description="the scores that `job.metrics` names")
    examples: Count = Field(description="texts that were scored")


class SystemScores(BaseModel):
    """One way to have a model, scored on every owner's test data."""

    model_config = _STRICT
    system: str = Field(
        description="`own:<owner>`, `own` (everyone's model on its own data), a method's id, "
        "`ensemble` or `multi-task`"
    )
    kind: Kind = Field(
        description="own: without a federation; merged: what blindmerge makes; simulation-only: "
        "needs all models or all data in one place"
    )
    name: str = Field(description="the system's name for people")
    scores: tuple[DataScore, ...] = Field(
        description="one per owner that has a model, in the order of `owners`"
    )
    mean: dict[str, Score] = Field(
        description="the mean of each metric over `scores`, each set counting the same"
    )

    @classmethod
    def of(cls, system: str, kind: Kind, name: str, scores: Sequence[DataScore]) -> "SystemScores":
        """The system with its mean.   scores: at least one."""
        mean = {
            metric: sum(score.metrics[metric] for score in scores) / len(scores)
            for metric in scores[0].metrics
        }
        return cls(system=system, kind=kind, name=name, scores=tuple(scores), mean=mean)


class Report(BaseModel):
    """Report of one run of blindmerge."""

    model_config = _STRICT
    masks: bool = Field(description="whether contributions were masked, so that only sums showed")
    protection: str = Field(description="what the server could see, in one sentence")
    privacy: str = Field(description="what an epsilon covers, of which data, in plain words")
    schema_version: Literal[3] = Field(
        description="rises when a field changes its meaning or goes away"
    )
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")] = Field(
        description="when the report was made, UTC, ISO 8601"
    )
    versions: Versions = Field(description="versions of the software")
    job: Job = Field(description="what was merged and how")
    owners: tuple[Owner, ...] = Field(description="who took part")
    sums: dict[str, tuple[Sum, ...]] = Field(description="the sums of each method, in order")
    layers: dict[str, tuple[Layer, ...]] = Field(
        description="what the solve of each method did, for layers with a Gram matrix"
    )
    adapter: AdapterReport | None = Field(
        default=None, description="what the merged model loses as a LoRA adapter; null without one"
    )
    seconds: Seconds = Field(description="where the time went")
    scores: tuple[SystemScores, ...] = Field(description="every system on every test set")
    files: dict[str, str] = Field(
        description="what the run wrote: purpose, and path relative to the report's folder"
    )

    @property
    def scored(self) -> tuple[str, ...]:
        """The owners on whose test data all systems were scored."""
        return tuple(score.data for score in self.scores[0].scores) if self.scores else ()

    @model_validator(mode="after")
    def _names_agree(self) -> "Report":
        if self.scored != tuple(o.name for o in self.owners if o.name in self.scored):
            raise ValueError("the scores are not on the owners' test data, in their order")
        methods = {method.id for method in self.job.methods}
        for system in self.scores:
            if tuple(score.data for score in system.scores) != self.scored:
                raise ValueError(f"the scores of '{system.system}' are on other data")
            if any(score.metrics.keys() != self.job.metrics.keys() for score in system.scores):
                raise ValueError(f"the scores of '{system.system}' are not those of the task")
        named = {*self.sums, *self.layers, *self.seconds.methods, *self.seconds.exchanges}
        named = named.union(*(owner.bytes_sent for owner in self.owners))
        if unknown := sorted(named - methods):
            raise ValueError(f"'{unknown[0]}' is not the id of a method of the job")
        return self


def report_json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `report.json`."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | Report.model_json_schema(mode="serialization")


def write_report(report: Report, path: Path) -> None:
    """Writes `report.json`: there is either the whole file or what was there before.

    The same report gives the same bytes.   Raises ResourceMissing if it cannot be written.
    """
    text = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
