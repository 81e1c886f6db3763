"""Quality of the merge methods over a suite of domains; one domain plays one organisation.

    python tests/bench/quality.py SUITE [--cache DIR] [--out FILE]

SUITE holds DOMAIN/{train,validation,test}.jsonl.gz; domains with test data alone are out of
domain. Every organisation fine-tunes the same base on its own domain, three times with
fixed seeds. Options of a method are chosen by the mean validation accuracy in domain over all
seeds; test data is read after that, once. No Flower here: `blindmerge simulate` carries the
same statistics through it.
"""

import argparse
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

from blindmerge import canonical
from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.merge import AnyMethod, Average, Fisher, RegMean
from blindmerge.plan import Plan
from blindmerge.statistic import Array
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.finetune import TrainingOptions, cached_finetune, prepare_base
from blindmerge_client.predict import ensemble, predict, score
from blindmerge_client.session import Session
from blindmerge_server.rounds import PhaseSum, solve_phase
from blindmerge_server.simulate.embedded import embedded_folder

SEEDS = (0, 1, 2)
ROWS = 2000  # training texts per organisation
STATISTICS = 1000  # of them, so many enter the statistics
TRAINING = TrainingOptions(epochs=3, learning_rate=2e-4, batch_size=32, max_length=64, rows=ROWS)

# What validation data may choose from; the first of each method is its default.
VARIANTS: Mapping[str, Sequence[AnyMethod]] = {
    "average": [Average()],
    "Fisher": [Fisher(examples=128), Fisher(examples=128, floor=1e-2)],
    "RegMean": [
        *(RegMean(ridge=ridge) for ridge in (0.1, 0.01, 0.3, 1.0)),
        *(RegMean(ridge=ridge, rows_factor=0.0) for ridge in (0.01, 0.1)),
        RegMean(weighting="tokens"),
        *(RegMean(ridge=1e-6, off_diagonal=alpha) for alpha in (0.7, 0.9)),
    ],
}


@dataclass(frozen=True)
class Score:
    """Means over domains, 0 to 1."""

    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class Suite:
    """Texts by domain. labels: sorted names of all labels that occur in training data."""

    name: str
    labels: tuple[str, ...]
    train: dict[str, Examples]
    validation: dict[str, Examples]
    test: dict[str, Examples]
    elsewhere: dict[str, Examples]


def read_suite(folder: Path) -> Suite:
    """All splits of a suite of single-label domains."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    inside = [name for name in names if (folder / name / "train.jsonl.gz").exists()]
    labels = _labels(folder / name / "train.jsonl.gz" for name in inside)

    def split(domains: Iterable[str], part: str) -> dict[str, Examples]:
        return {d: read_examples(folder / d / f"{part}.jsonl.gz", labels) for d in domains}

    return Suite(
        name=folder.name,
        labels=labels,
        train=split(inside, "train"),
        validation=split(inside, "validation"),
        test=split(inside, "test"),
        elsewhere=split([name for name in names if name not in inside], "test"),
    )


def _labels(files: Iterable[Path]) -> tuple[str, ...]:
    found = set()
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        if "label" not in rows[0]:
            raise SystemExit(f"{file} has no labels of whole texts: only such suites can run")
        found |= {row["label"] for row in rows}
    return tuple(sorted(found))


@dataclass(frozen=True)
class Models:
    """What one seed trains. own: by domain."""

    base: Path
    own: dict[str, Path]
    multi_task: Path


def train(suite: Suite, encoder: Path, seed: int, cache: Path) -> Models:
    """Base, own models and the multi-task model of a seed, from the cache if they are there."""
    key = canonical.encode([Checkpoint(encoder).sha256, suite.labels, seed])
    base = cache / "bases" / hashlib.sha256(key).hexdigest()
    if not base.is_dir():
        prepare_base(encoder, suite.labels, seed, base)
    options = TRAINING.model_copy(update={"seed": seed})
    parts = [examples.first(ROWS) for examples in suite.train.values()]
    pooled = Examples(
        tuple(text for part in parts for text in part.texts),
        tuple(label for part in parts for label in part.labels),
    )
    one = partial(_train, cache / "models", base, Checkpoint(base).sha256)
    # The longest first, so that the cores end at about the same time.
    examples = [pooled, *suite.train.values()]
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(one, each, options.model_copy(update={"rows": rows}))
            for each, rows in zip(examples, [None] + [ROWS] * len(parts), strict=True)
        ]
        multi_task, *own = [job.result() for job in jobs]
    return Models(base, dict(zip(suite.train, own, strict=True)), multi_task)


def _train(
    cache: Path, base: Path, base_sha256: str, examples: Examples, options: TrainingOptions
) -> Path:
    torch.set_num_threads(1)
    return cached_finetune(cache, base, base_sha256, examples, options)


def merge_all(suite: Suite, models: Models, out: Path) -> dict[str, list[Path]]:
    """The merged checkpoints of every variant, by method.

    Evidence is collected once per block and serves all variants.
    """
    base = Checkpoint(models.base)
    plans = {
        method: [_plan(suite, base, variant) for variant in variants]
        for method, variants in VARIANTS.items()
    }
    folders = {m: [out / m / str(i) for i in range(len(ps))] for m, ps in plans.items()}
    writers = {m: [CheckpointWriter(folder, base) for folder in folders[m]] for m in plans}
    sessions = {
        (domain, method): Session(
            method_plans[0],
            models.base,
            own,
            suite.train[domain].first(STATISTICS).texts,
            out / "work" / domain / method,
        )
        for domain, own in models.own.items()
        for method, method_plans in plans.items()
    }
    for phase in range(len(base.manifest.blocks)):
        sums = {m: [PhaseSum(plan, phase) for plan in ps] for m, ps in plans.items()}
        for (domain, method), session in sessions.items():
            # The first variant's evidence serves the others: they differ in what they make of
            # a Gram matrix or a Fisher, or in the solve.
            evidence = session.evidence(phase)
            for plan, total in zip(plans[method], sums[method], strict=True):
                total.add(domain, plan.method.contribution(plan.phases[phase], evidence).arrays)
        for method, method_plans in plans.items():
            for plan, total, writer in zip(
                method_plans, sums[method], writers[method], strict=True
            ):
                solve_phase(plan, phase, total, base, writer)
    for writer in (writer for group in writers.values() for writer in group):
        writer.finish()
    return folders


def _plan(suite: Suite, base: Checkpoint, method: AnyMethod) -> Plan:
    return Plan(
        job=f"bench-{suite.name}",
        base=base.sha256,
        manifest=base.manifest,
        labels=suite.labels,
        method=method,
        examples=STATISTICS,
        max_length=TRAINING.max_length,
    )


def apply(checkpoint: Path, sets: Mapping[str, Examples]) -> dict[str, Array]:
    """Logits by domain, from one load of the model."""
    texts = [text for examples in sets.values() for text in examples.texts]
    logits = predict(checkpoint, texts, TRAINING.max_length)
    ends = np.cumsum([len(examples) for examples in sets.values()])[:-1]
    return dict(zip(sets, np.split(logits, ends), strict=True))


def over(sets: Mapping[str, Examples], predictions: Mapping[str, Array]) -> Score:
    """The means over the domains of `sets`."""
    found = [score(predictions[domain], sets[domain].labels) for domain in sets]
    return Score(mean(f.accuracy for f in found), mean(f.macro_f1 for f in found))


def on_validation(suite: Suite, merged: Mapping[str, list[Path]]) -> dict[str, list[Score]]:
    """Every variant on the validation data in domain."""
    sets = suite.validation
    return {m: [over(sets, apply(path, sets)) for path in paths] for m, paths in merged.items()}


def on_test(suite: Suite, models: Models, chosen: Mapping[str, Path]) -> dict[str, list[Score]]:
    """Every system on the test data: in domain, and out of domain if the suite has such sets."""
    everything = suite.test | suite.elsewhere
    own = {domain: apply(path, everything) for domain, path in models.own.items()}
    together = {
        domain: ensemble([logits[domain] for logits in own.values()]) for domain in everything
    }
    systems = {
        **{method: apply(path, everything) for method, path in chosen.items()},
        "ensemble": together,
        "multi-task": apply(models.multi_task, everything),
    }
    found = {
        "own, own domain": [over(suite.test, {d: own[d][d] for d in suite.test})],
        "own, all domains": [_mean([over(suite.test, logits) for logits in own.values()])],
    }
    for name, predictions in systems.items():
        found[name] = [over(suite.test, predictions)]
    if suite.elsewhere:
        others = [over(suite.elsewhere, logits) for logits in own.values()]
        found["own, all domains"].append(_mean(others))
        for name, predictions in systems.items():
            found[name].append(over(suite.elsewhere, predictions))
    return found


def _mean(scores: Sequence[Score]) -> Score:
    return Score(mean(s.accuracy for s in scores), mean(s.macro_f1 for s in scores))


def choose(validations: Sequence[Mapping[str, list[Score]]]) -> dict[str, int]:
    """The variant of each method with the best mean validation accuracy over the seeds."""
    return {
        method: max(
            range(len(variants)),
            key=lambda i: mean(found[method][i].accuracy for found in validations),
        )
        for method, variants in VARIANTS.items()
    }


def table(results: Sequence[Mapping[str, list[Score]]]) -> str:
    """Markdown: mean and standard deviation over the seeds, accuracy / macro-F1 in %."""
    lines = ["| model | in domain | out of domain |", "|---|---|---|"]
    for name in results[0]:
        cells = []
        for column in range(len(results[0][name])):
            accuracy = [100 * found[name][column].accuracy for found in results]
            macro_f1 = [100 * found[name][column].macro_f1 for found in results]
            cells.append(f"{_spread(accuracy)} / {_spread(macro_f1)}")
        lines.append(f"| {name} | {' | '.join(cells + [''] * (2 - len(cells)))} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def run(suite: Suite, cache: Path, out: Path) -> None:
    """Trains, merges, chooses, tests; writes the numbers to `out` and prints the table."""
    encoder = embedded_folder(cache, print) / "minilm"
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        trained, merged, validations = [], [], []
        for seed in SEEDS:
            print(f"{suite.name}: seed {seed}", flush=True)
            trained.append(train(suite, encoder, seed, cache))
            merged.append(merge_all(suite, trained[-1], Path(folder) / str(seed)))
            validations.append(on_validation(suite, merged[-1]))
        best = choose(validations)
        chosen = {m: VARIANTS[m][i].model_dump(mode="json") for m, i in best.items()}
        results = [
            on_test(suite, models, {m: paths[m][i] for m, i in best.items()})
            for models, paths in zip(trained, merged, strict=True)
        ]
    record = {
        "suite": suite.name,
        "seeds": SEEDS,
        "rows": ROWS,
        "statistics": STATISTICS,
        "training": TRAINING.model_dump(mode="json"),
        "chosen": chosen,
        "validation": [
            {
                method: [
                    {"options": v.model_dump(mode="json"), **asdict(s)}
                    for v, s in zip(VARIANTS[method], scores, strict=True)
                ]
                for method, scores in found.items()
            }
            for found in validations
        ],
        "test": [{n: [asdict(s) for s in ss] for n, ss in found.items()} for found in results],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"quality-{suite.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / f"quality-{suite.name}.md").write_text(table(results) + "\n")
    print(table(results))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Quality of the merge methods over suites.")
    parser.add_argument("suite", type=Path, nargs="+")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/blindmerge"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    for folder in options.suite:
        run(read_suite(folder), options.cache.expanduser(), options.out)


if __name__ == "__main__":
    main()
