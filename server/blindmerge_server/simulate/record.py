"""The report of a simulation, from what happened in it."""

from datetime import UTC, datetime
from importlib.metadata import version

from blindmerge_server.report.schema import (
    MASKS_OFF,
    Examples,
    Job,
    Layer,
    Method,
    Missing,
    Owner,
    Phase,
    Report,
    Seconds,
    SystemScores,
    Versions,
)
from blindmerge_server.simulate.apps import FlowerRun
from blindmerge_server.simulate.setting import Setting

__all__ = ["FILES", "make_report"]

FILES = {
    "merged model": "merged",
    "report": "report.json",
    "scores per method": "scores.png",
    "who does well on whose data": "matrix.png",
}
"""What a simulation writes: purpose and name in the output folder."""


def make_report(
    setting: Setting, run: FlowerRun, scores: tuple[SystemScores, ...], seconds: Seconds
) -> Report:
    """The report of the run; the clock is read for `created`."""
    return Report(
        masks=False,
        protection=MASKS_OFF,
        schema_version=1,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        versions=Versions(
            **{name: version(name) for name in ("blindmerge", "flwr", "torch", "transformers")}
        ),
        job=_job(setting),
        owners=tuple(_owner(setting, run, pupil.name) for pupil in setting.pupils),
        phases={
            name: tuple(
                Phase(block=merged.block, owners=merged.owners, seconds=seconds_)
                for merged, seconds_ in zip(job.phases, job.seconds, strict=True)
            )
            for name, job in run.jobs.items()
        },
        layers={
            name: tuple(Layer.of(layer) for merged in job.phases for layer in merged.layers)
            for name, job in run.jobs.items()
        },
        seconds=seconds,
        scores=scores,
        files=FILES,
    )


def _job(setting: Setting) -> Job:
    federation = setting.federation
    chosen = next(iter(setting.plans))
    return Job(
        name=federation.job.name,
        base_sha256=setting.base.sha256,
        task=federation.job.task,
        labels=federation.job.labels,
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


def _owner(setting: Setting, run: FlowerRun, name: str) -> Owner:
    splits = setting.splits[name]
    missing = None
    if name in run.missing:
        lost = run.missing[name]
        missing = Missing(method=next(iter(run.jobs)), phase=lost.phase, reason=lost.reason)
    for method, job in run.jobs.items():
        if missing is None and name in job.missing:
            lost = job.missing[name]
            missing = Missing(method=method, phase=lost.phase, reason=lost.reason)
    return Owner(
        name=name,
        examples=Examples(
            train=len(splits.train), validation=len(splits.validation), test=len(splits.test)
        ),
        bytes_sent={
            m: job.sent_bytes[name] for m, job in run.jobs.items() if name in job.sent_bytes
        },
        missing=missing,
    )
