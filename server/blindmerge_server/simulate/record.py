"""The report of a simulation, from what happened in it."""

from datetime import UTC, datetime
from importlib.metadata import version

from blindmerge.adapter import AdapterReport
from blindmerge.plan import Plan
from blindmerge.privacy.wording import guarantee
from blindmerge.tasks import METRICS
from blindmerge_server.report.schema import (
    MASKS_OFF,
    MASKS_ON,
    Examples,
    Job,
    Layer,
    Masks,
    Method,
    Missing,
    Owner,
    Report,
    Seconds,
    Sum,
    SystemScores,
    Versions,
)
from blindmerge_server.simulate.apps import FlowerRun
from blindmerge_server.simulate.setting import Pupil, Setting
from blindmerge_server.strategy import JobRecord

__all__ = ["ADAPTER", "FILES", "OWN", "TRANSCRIPTS", "make_report", "transcripts"]

FILES = {
    "merged model": "merged",
    "report": "report.json",
    "scores per method": "scores.png",
    "who does well on whose data": "matrix.png",
}
"""What a simulation writes: purpose and name in the output folder."""

ADAPTER = "adapter"
"""The folder in it with the merged model as a LoRA adapter, if the job asks for one."""

OWN = "owners"
"""The folder in it with a model for each owner, the merged body under its own head, if heads are
kept."""

TRANSCRIPTS = "transcripts"
"""The folder in it with the signatures under the sums of the chosen method, if there are masks."""


def make_report(
    setting: Setting,
    run: FlowerRun,
    scores: tuple[SystemScores, ...],
    seconds: Seconds,
    adapter: AdapterReport | None = None,
) -> Report:
    """The report of the run; the clock is read for `created`."""
    job = _job(setting)
    masks = job.masks
    return Report(
        masks=masks is not None,
        protection=MASKS_ON.format(least=masks.least_owners) if masks else MASKS_OFF,
        privacy=guarantee(setting.plans[job.methods[0].id].noise),
        schema_version=3,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        versions=Versions(
            **{name: version(name) for name in ("blindmerge", "flwr", "torch", "transformers")}
        ),
        job=job,
        owners=tuple(_owner(setting, run, pupil) for pupil in setting.pupils),
        sums={name: _sums(setting, name, record) for name, record in run.jobs.items()},
        layers={
            name: tuple(Layer.of(layer) for layer in record.layers)
            for name, record in run.jobs.items()
        },
        seconds=seconds,
        scores=scores,
        adapter=adapter,
        files=FILES
        | ({"the same as an adapter": ADAPTER} if adapter else {})
        | ({"merged models with the owners' heads": OWN} if setting.federation.heads_kept else {})
        | ({"signatures under the sums": TRANSCRIPTS} if masks else {}),
    )


def transcripts(setting: Setting, run: FlowerRun) -> dict[str, bytes]:
    """What `blindmerge verify-transcript` checks, by file name: the sums of the chosen method."""
    proofs = run.jobs[next(iter(setting.plans))].proofs
    return {_file(phase): proof.transcript.encode() for phase, proof in enumerate(proofs)}


def _file(phase: int) -> str:
    return f"sum-{phase + 1:03}.cbor"


def _sums(setting: Setting, method: str, job: JobRecord) -> tuple[Sum, ...]:
    plan, chosen = setting.plans[method], method == next(iter(setting.plans))
    if plan.masks == "off":
        return tuple(
            Sum(blocks=(block,), owners=owners, signed=None, opened=None, transcript=None)
            for block, owners in job.owners.items()
        )
    return tuple(
        Sum(
            blocks=tuple(plan.blocks[block].name for block in blocks),
            owners=proof.transcript.summed,
            signed=proof.transcript.signed,
            opened=proof.openers,
            transcript=f"{TRANSCRIPTS}/{_file(phase)}" if chosen else None,
        )
        for phase, (blocks, proof) in enumerate(zip(plan.phases, job.proofs, strict=True))
    )


def _job(setting: Setting) -> Job:
    federation = setting.federation
    chosen = next(iter(setting.plans))
    return Job(
        name=federation.job.name,
        base_sha256=setting.base.sha256,
        task=federation.job.task,
        metrics={metric.id: metric.name for metric in METRICS[federation.job.task]},
        masks=_masks(setting.plans[chosen]),
        labels=() if federation.heads_kept else federation.job.labels,
        examples=federation.job.examples,
        max_length=federation.training.max_length,
        methods=tuple(
            Method(
                id=name,
                role="chosen" if name == chosen else "comparison",
                options=plan.method.model_dump(mode="json"),
                plan_sha256=plan.sha256,
            )
            for name, plan in setting.plans.items()
        ),
    )


def _masks(plan: Plan) -> Masks | None:
    if plan.masks == "off":
        return None
    thresholds = plan.masks.thresholds
    return Masks(
        owners=thresholds.owners,
        least_owners=thresholds.quorum,
        colluders=thresholds.colluders,
        bits=plan.masks.bits,
        roster_sha256=plan.masks.roster,
    )


def _owner(setting: Setting, run: FlowerRun, pupil: Pupil) -> Owner:
    name = pupil.name
    splits = setting.splits[name]
    missing = None
    if name in run.missing:
        lost = run.missing[name]
        missing = Missing(method=next(iter(run.jobs)), step=lost.step, reason=lost.reason)
    for method, job in run.jobs.items():
        if missing is None and name in job.dropped:
            lost = job.dropped[name]
            missing = Missing(method=method, step=lost.step, reason=lost.reason)
    return Owner(
        name=name,
        labels=pupil.labels,
        examples=Examples(
            train=len(splits.train), validation=len(splits.validation), test=len(splits.test)
        ),
        bytes_sent={
            m: job.sent_bytes[name] for m, job in run.jobs.items() if name in job.sent_bytes
        },
        missing=missing,
    )
