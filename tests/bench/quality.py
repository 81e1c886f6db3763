"""Quality of the merge methods over a suite of domains; one domain plays one organisation.

    PYTHONPATH=tests python tests/bench/quality.py SUITE...
        [--cache DIR] [--out DIR] [--seeds-at-once N]

SUITE holds DOMAIN/{train,validation,test}.jsonl.gz; domains with test data alone are out of
domain. Every organisation fine-tunes the same base on its own domain, three times with
fixed seeds. Options of a method are chosen by the mean validation score in domain over all
seeds (SETTINGS says which score); test data is read after that, once. No Flower here:
`blindmerge simulate` carries the same statistics through it.
"""

import argparse
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial, reduce
from multiprocessing import get_context
from operator import add
from pathlib import Path
from statistics import mean, stdev

import torch

from bench.quality_settings import SETTINGS, Settings
from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.merge import AnyMethod
from blindmerge.plan import Plan
from blindmerge.statistic import Array
from blindmerge.tasks import METRICS, Task
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.finetune import cached_base, cached_finetune
from blindmerge_client.options import TrainingOptions
from blindmerge_client.predict import predict_all
from blindmerge_client.scores import score
from blindmerge_client.session import Session
from blindmerge_client.tasks import TASKS
from blindmerge_server.simulate.embedded import embedded_folder

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Score:
    """Means over domains, 0 to 1."""

    accuracy: float
    f1: float


@dataclass(frozen=True)
class Suite:
    """Texts by domain. labels: sorted names of all labels that occur in training data."""

    name: str
    task: Task
    labels: tuple[str, ...]
    train: dict[str, Examples]
    validation: dict[str, Examples]
    test: dict[str, Examples]
    elsewhere: dict[str, Examples]

    @property
    def settings(self) -> Settings:
        """How it is run."""
        return SETTINGS[self.task]


def read_suite(folder: Path) -> Suite:
    """All splits of a suite of domains."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    inside = [name for name in names if (folder / name / "train.jsonl.gz").exists()]
    task, labels = _task_and_labels(folder / name / "train.jsonl.gz" for name in inside)

    def split(domains: Iterable[str], part: str, rows: int | None = None) -> dict[str, Examples]:
        found = {d: read_examples(folder / d / f"{part}.jsonl.gz", labels, task) for d in domains}
        return found if rows is None else {d: each.first(rows) for d, each in found.items()}

    return Suite(
        name=folder.name,
        task=task,
        labels=labels,
        train=split(inside, "train", SETTINGS[task].training.rows),
        validation=split(inside, "validation"),
        test=split(inside, "test", SETTINGS[task].test),
        elsewhere=split([n for n in names if n not in inside], "test", SETTINGS[task].test),
    )


def _task_and_labels(files: Iterable[Path]) -> tuple[Task, tuple[str, ...]]:
    rows = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines]
    if "label" in rows[0]:
        return "single-label", tuple(sorted({row["label"] for row in rows}))
    return "token-classification", tuple(sorted({tag for row in rows for tag in row["tags"]}))


@dataclass(frozen=True)
class Models:
    """What one seed trains. own: by domain."""

    base: Path
    own: dict[str, Path]
    multi_task: Path


def train(suite: Suite, encoder: Path, seed: int, cache: Path) -> Models:
    """Base, own models and the multi-task model of a seed, from the cache if they are there."""
    base = cached_base(cache / "bases", Checkpoint(encoder), suite.labels, seed, suite.task)
    options = suite.settings.training.model_copy(update={"seed": seed, "rows": None})
    one = partial(_train, cache / "models", base, Checkpoint(base).sha256, options)
    # The longest first, so that the cores end at about the same time.
    examples = [Examples.pooled(suite.train.values()), *suite.train.values()]
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        multi_task, *own = pool.map(one, examples)
    return Models(base, dict(zip(suite.train, own, strict=True)), multi_task)


def _train(
    cache: Path, base: Path, base_sha256: str, options: TrainingOptions, examples: Examples
) -> Path:
    torch.set_num_threads(1)
    return cached_finetune(cache, base, base_sha256, examples, options)


def merge_all(suite: Suite, models: Models, out: Path) -> dict[str, list[Path]]:
    """The merged checkpoints of every variant, by row of the table."""
    merged: dict[str, list[Path]] = {}
    jobs: dict[str, list[tuple[Plan, Path]]] = {}
    for row, variants in suite.settings.variants.items():
        merged[row] = [out / "merged" / row / str(number) for number in range(len(variants))]
        for method, folder in zip(variants, merged[row], strict=True):
            jobs.setdefault(_evidence_of(method), []).append(
                (_plan(suite, models.base, method), folder)
            )
    for number, group in enumerate(jobs.values()):
        # A share of Fisher merging needs more evidence than none; it changes nothing else.
        group.sort(key=lambda job: "fisher_share" not in job[0].method.model_fields_set)
        merge(suite, models, group, out / "work" / str(number))
    return merged


def _evidence_of(method: AnyMethod) -> str:
    """What must agree for the evidence of two variants to be the same.

    One-shot: what is collected once serves all variants, which differ in what they make of a
    Gram matrix or a Fisher, or in the solve. In forward order only the share of Fisher merging
    changes nothing of what is measured.
    """
    if not method.progressive:
        return f"{method.name} {method.halves}"
    return method.model_dump_json(exclude={"fisher_share", "fisher_examples"})


def merge(suite: Suite, models: Models, jobs: Sequence[tuple[Plan, Path]], work: Path) -> None:
    """Merges by plans whose statistics come from the same evidence, each into its folder.

    The first of them says what is collected.
    """
    base, first = Checkpoint(models.base), jobs[0][0]
    writers = [(plan, CheckpointWriter(folder, base, plan.blocks)) for plan, folder in jobs]
    sessions = [
        Session(first, models.base, own, suite.train[domain].texts, work / domain)
        for domain, own in models.own.items()
    ]
    with ThreadPoolExecutor(min(len(sessions), len(os.sched_getaffinity(0)))) as pool:
        for number, block in enumerate(first.blocks):
            evidence = list(pool.map(partial(Session.evidence, block=number), sessions))
            weights = base.read(block.shapes)
            for plan, writer in writers:
                total = reduce(add, (plan.method.contribution(block, each) for each in evidence))
                solved = plan.method.solve(block, total, weights)
                writer.write(number, solved.weights)
                if plan is first and plan.method.progressive:
                    for session in sessions:
                        session.receive(solved.interim or solved.weights)
    for _, writer in writers:
        writer.finish()
    shutil.rmtree(work)


def _plan(suite: Suite, base: Path, method: AnyMethod) -> Plan:
    checkpoint = Checkpoint(base)
    return Plan(
        job=f"bench-{suite.name}",
        base=checkpoint.sha256,
        manifest=checkpoint.manifest,
        task=suite.task,
        labels=suite.labels,
        method=method,
        examples=suite.settings.statistics,
        max_length=suite.settings.training.max_length,
        masks="off",
    )


def apply(suite: Suite, checkpoint: Path, sets: Mapping[str, Examples]) -> dict[str, Array]:
    """Logits by domain."""
    return predict_all(checkpoint, sets, suite.settings.training.max_length)


def over(suite: Suite, sets: Mapping[str, Examples], predictions: Mapping[str, Array]) -> Score:
    """The means over the domains of `sets`."""
    found = [score(suite.task, predictions[d], sets[d], suite.labels) for d in sets]
    return Score(mean(f.metrics["accuracy"] for f in found), mean(f.metrics["f1"] for f in found))


def on_validation(suite: Suite, merged: Mapping[str, list[Path]]) -> dict[str, list[Score]]:
    """Every variant on the validation data in domain."""
    sets = suite.validation
    return {
        m: [over(suite, sets, apply(suite, path, sets)) for path in paths]
        for m, paths in merged.items()
    }


def on_test(suite: Suite, models: Models, chosen: Mapping[str, Path]) -> dict[str, list[Score]]:
    """Every system on the test data: in domain, and out of domain if the suite has such sets."""
    everything = suite.test | suite.elsewhere
    own = {domain: apply(suite, path, everything) for domain, path in models.own.items()}
    together = {
        domain: TASKS[suite.task].combine([logits[domain] for logits in own.values()])
        for domain in everything
    }
    systems = {
        **{method: apply(suite, path, everything) for method, path in chosen.items()},
        "ensemble": together,
        "multi-task": apply(suite, models.multi_task, everything),
    }
    found = {
        "own, own domain": [over(suite, suite.test, {d: own[d][d] for d in suite.test})],
        "own, all domains": [_mean([over(suite, suite.test, logits) for logits in own.values()])],
    }
    for name, predictions in systems.items():
        found[name] = [over(suite, suite.test, predictions)]
    if suite.elsewhere:
        others = [over(suite, suite.elsewhere, logits) for logits in own.values()]
        found["own, all domains"].append(_mean(others))
        for name, predictions in systems.items():
            found[name].append(over(suite, suite.elsewhere, predictions))
    return found


def _mean(scores: Sequence[Score]) -> Score:
    return Score(mean(s.accuracy for s in scores), mean(s.f1 for s in scores))


def choose(suite: Suite, validations: Sequence[Mapping[str, list[Score]]]) -> dict[str, int]:
    """The variant of each method with the best mean validation score over the seeds."""
    by = suite.settings.choose_by
    return {
        method: max(
            range(len(variants)),
            key=lambda i: mean(getattr(found[method][i], by) for found in validations),
        )
        for method, variants in suite.settings.variants.items()
    }


def table(results: Sequence[Mapping[str, list[Score]]]) -> str:
    """Markdown: mean and standard deviation over the seeds, accuracy / F1 in %."""
    lines = ["| model | in domain | out of domain |", "|---|---|---|"]
    for name in results[0]:
        cells = []
        for column in range(len(results[0][name])):
            accuracy = [100 * found[name][column].accuracy for found in results]
            f1 = [100 * found[name][column].f1 for found in results]
            cells.append(f"{_spread(accuracy)} / {_spread(f1)}")
        lines.append(f"| {name} | {' | '.join(cells + [''] * (2 - len(cells)))} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def run(suite: Suite, cache: Path, out: Path, seeds: Sequence[int], at_once: int) -> None:
    """Trains, merges, chooses, tests; writes the numbers to `out` and prints the table.

    at_once: so many seeds at a time, each in a process.
    """
    encoder = embedded_folder(cache, print) / "minilm"
    with (
        tempfile.TemporaryDirectory(prefix="quality-") as folder,
        ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool,
    ):
        begin = partial(_validated, suite, encoder, cache, Path(folder))
        trained, merged, validations = zip(*pool.map(begin, seeds), strict=True)
        best = choose(suite, validations)
        chosen = [{row: paths[row][i] for row, i in best.items()} for paths in merged]
        results = list(pool.map(partial(on_test, suite), trained, chosen))
    out.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(record(suite, seeds, best, validations, results), indent=1)
    (out / f"quality-{suite.name}.json").write_text(numbers + "\n")
    (out / f"quality-{suite.name}.md").write_text(table(results) + "\n")
    print(table(results))


def _validated(
    suite: Suite, encoder: Path, cache: Path, folder: Path, seed: int
) -> tuple[Models, dict[str, list[Path]], dict[str, list[Score]]]:
    """The models of a seed, the merged ones, and what validation data says of these."""
    models = train(suite, encoder, seed, cache)
    print(f"{suite.name}: models of seed {seed}", flush=True)
    merged = merge_all(suite, models, folder / str(seed))
    print(f"{suite.name}: merged models of seed {seed}", flush=True)
    return models, merged, on_validation(suite, merged)


def record(
    suite: Suite,
    seeds: Sequence[int],
    best: Mapping[str, int],
    validations: Sequence[Mapping[str, list[Score]]],
    results: Sequence[Mapping[str, list[Score]]],
) -> dict[str, object]:
    """All numbers of a run, and how they came about."""
    settings = suite.settings
    variants = {m: [v.model_dump(mode="json") for v in vs] for m, vs in settings.variants.items()}
    return {
        "suite": suite.name,
        "task": suite.task,
        "f1": METRICS[suite.task][1].name,
        "seeds": list(seeds),
        "statistics": settings.statistics,
        "training": settings.training.model_dump(mode="json"),
        "tested": {d: len(each) for d, each in (suite.test | suite.elsewhere).items()},
        "chosen": {method: variants[method][i] for method, i in best.items()},
        "validation": [
            {
                method: [
                    {"options": options, **asdict(found)}
                    for options, found in zip(variants[method], scores, strict=True)
                ]
                for method, scores in validation.items()
            }
            for validation in validations
        ],
        "test": [{n: [asdict(s) for s in ss] for n, ss in found.items()} for found in results],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Quality of the merge methods over suites.")
    parser.add_argument("suite", type=Path, nargs="+")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/blindmerge"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--seeds-at-once", type=int, default=1, metavar="N")
    options = parser.parse_args()
    for folder in options.suite:
        suite, cache = read_suite(folder), options.cache.expanduser()
        run(suite, cache, options.out, options.seeds, options.seeds_at_once)


if __name__ == "__main__":
    main()
