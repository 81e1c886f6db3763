"""Plausible reports, made up from a seed."""

from collections.abc import Sequence

import numpy as np

from blindmerge.merge import AnyMethod, Average, Fisher, LayerReport, RegMean
from blindmerge.privacy.wording import guarantee
from blindmerge.tasks import METRICS, Task
from blindmerge_server.report.schema import (
    MASKS_OFF,
    MASKS_ON,
    DataScore,
    Examples,
    Job,
    Kind,
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
from blindmerge_server.report.wording import name_of

__all__ = ["LONG_NAMES", "make_report"]

LONG_NAMES = (
    "north-west-university-hospital-1",
    "tweets",
    "st-mary-clinic",
    "editorials",
    "donaudampfschifffahrtsgesellscha",
    "products-and-services",
    "films",
    "regional-insurance-association",
)
BLOCKS = ("embeddings", *(f"encoder.layer.{index}" for index in range(6)), "head")
MASKS = Masks(owners=4, least_owners=3, colluders=1, bits=64, roster_sha256="b" * 64)
METHODS: dict[str, AnyMethod] = {"regmean": RegMean(), "average": Average(), "fisher": Fisher()}


def make_report(
    owners: Sequence[str],
    *,
    seed: int = 0,
    missing: str | None = None,
    starved: bool = False,
    masked: bool = True,
    task: Task = "single-label",
) -> Report:
    """A report over these owners.

    missing: name of an owner that dropped out.   starved: whether layers fell back.
    masked: whether the sums were.   task: whose metrics the scores are.
    """
    rng = np.random.default_rng(seed)
    present = tuple(owner for owner in owners if owner != missing)
    masks = MASKS if masked else None
    sums = (
        Sum(
            blocks=BLOCKS,
            owners=present,
            signed=present if masked else None,
            opened=present if masked else None,
            transcript="transcripts/sum-001.cbor" if masked else None,
        ),
    )
    return Report(
        masks=masked,
        privacy=guarantee("off"),
        protection=MASKS_ON.format(least=3) if masked else MASKS_OFF,
        schema_version=3,
        created="2026-01-31T12:00:00Z",
        versions=Versions(blindmerge="0.1.0", flwr="1.41.0", torch="2.13.0", transformers="5.23.0"),
        job=_job(masks, task),
        owners=tuple(_owner(name, rng, name == missing) for name in owners),
        sums=dict.fromkeys(METHODS, sums),
        layers={"regmean": tuple(_layers(rng, starved)), "average": (), "fisher": ()},
        seconds=Seconds(
            fetch=0.0,
            fine_tune=96.4,
            methods={"regmean": 31.0, "average": 8.25, "fisher": 54.0},
            exchanges={"regmean": {"R0 advertise": 0.5, "R1 share": 0.5}},
            comparisons=61.5,
            evaluate=22.0,
            total=276.1,
        ),
        scores=tuple(_scores(owners, rng, task)),
        files={"merged model": "merged", "report": "report.json", "plots": "scores.png"},
    )


def _job(masks: Masks | None, task: Task) -> Job:
    return Job(
        name="sentiment",
        base_sha256="a" * 64,
        task=task,
        metrics={metric.id: metric.name for metric in METRICS[task]},
        masks=masks,
        labels=("negative", "positive"),
        examples=1000,
        max_length=64,
        methods=tuple(
            Method(
                id=name,
                role="comparison" if index else "chosen",
                options=method.model_dump(mode="json"),
                plan_sha256=f"{index}" * 64,
            )
            for index, (name, method) in enumerate(METHODS.items())
        ),
    )


def _owner(name: str, rng: np.random.Generator, missing: bool) -> Owner:
    train = int(rng.integers(400, 3000))
    gone = Missing(
        method="regmean", step="R2 masked input: encoder.layer.3", reason="its process ended"
    )
    return Owner(
        name=name,
        labels=("negative", "positive"),
        examples=Examples(train=train, validation=train // 10, test=train // 5),
        bytes_sent={"regmean": 26_540_000, "average": 180_000_000, "fisher": 540_000_000},
        missing=gone if missing else None,
    )


def _layers(rng: np.random.Generator, starved: bool) -> list[Layer]:
    found = []
    for block in BLOCKS[1:]:
        falls = starved and block == "head"
        report = LayerReport(
            block=block,
            layers=(f"bert.{block}.query", f"bert.{block}.key", f"bert.{block}.value"),
            rows=int(rng.integers(20_000, 90_000)),
            condition_number=None if falls else float(10 ** rng.uniform(2, 5)),
            ridge=None if falls else 0.1,
            residual=None if falls else float(10 ** rng.uniform(-15, -12)),
            fallback="2 owner(s) had fewer than 4 x 385 rows" if falls else None,
        )
        found.append(Layer.of(report))
    return found


def _scores(owners: Sequence[str], rng: np.random.Generator, task: Task) -> list[SystemScores]:
    """Own models are good at home and poor abroad; merged models lie between."""
    home = rng.uniform(0.78, 0.92, len(owners))
    abroad = home - rng.uniform(0.08, 0.25, (len(owners), len(owners)))
    np.fill_diagonal(abroad, home)
    systems = [_system(task, "own", "own", name_of("own"), owners, list(home))]
    for name, row in zip(owners, abroad, strict=True):
        systems.append(
            _system(task, f"own:{name}", "own", name_of(f"own:{name}"), owners, list(row))
        )
    merged = {"regmean": 0.04, "average": 0.11, "fisher": 0.07}
    simulated = {"ensemble": 0.035, "multi-task": 0.005}
    for name, loss in {**merged, **simulated}.items():
        kind: Kind = "merged" if name in merged else "simulation-only"
        row = home - loss + rng.normal(0, 0.01, len(owners))
        systems.append(_system(task, name, kind, name_of(name), owners, list(row)))
    return systems


def _system(
    task: Task, system: str, kind: Kind, name: str, owners: Sequence[str], parts: Sequence[float]
) -> SystemScores:
    """parts: how good it is on each owner's data, 0 to 1."""
    scores = [
        DataScore(data=owner, metrics=_metrics(task, float(part)), examples=300)
        for owner, part in zip(owners, parts, strict=True)
    ]
    return SystemScores.of(system, kind, name, scores)


def _metrics(task: Task, part: float) -> dict[str, float]:
    return {
        metric.id: round(part - 0.02 * place if metric.percent else 3 * (1 - part), 4)
        for place, metric in enumerate(METRICS[task])
    }
