"""What noise costs in quality, and what it buys: accuracy against epsilon, and attacks.

    python tests/bench/privacy_quality.py SUITE [--cache DIR] [--out DIR]

SUITE as for `quality.py`; every organisation has all of its training texts. One seed. Its Gram
matrices are collected once, and get noise for each epsilon as a job of its own would. The same
five models serve all lines, so what differs is the noise; in end-to-end mode others, trained with
DP-SGD. Options of RegMean are its defaults, and layers are left out by the rule on public numbers.
How models are trained with noise was chosen on validation data of three domains at epsilon 8, and
so was the scale of task arithmetic, for all.
"""

import argparse
import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial, reduce
from multiprocessing import get_context
from operator import add
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from bench.quality import Suite, apply, over, read_suite
from bench.quality_settings import SETTINGS
from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.merge import Average, BlockEvidence, GramEvidence, RegMean, TaskArithmetic
from blindmerge.plan import Plan
from blindmerge.privacy.accountant import multiplier_for, rho_for, training_for
from blindmerge.privacy.mechanism import PrivateGrams, project
from blindmerge.privacy.terms import gram_groups, public_rows
from blindmerge.privacy.utility import noise_to_signal
from blindmerge.secagg.secret import OsRandomness
from blindmerge.statistic import unpack_symmetric
from blindmerge_client.batches import batches
from blindmerge_client.collect.private import collect_private_grams, units_of
from blindmerge_client.collect.whitening import Whitening
from blindmerge_client.data import read_examples
from blindmerge_client.dp_sgd import TrainingNoise, finetune_with_noise
from blindmerge_client.finetune import cached_base, cached_finetune
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.options import LoraOptions, TrainingOptions
from blindmerge_client.session import Session
from blindmerge_server.noise_settings import NoiseSettings
from blindmerge_server.simulate.embedded import embedded_folder
from blindmerge_server.simulate.noise_terms import cached_norms, noise_of

DELTA = 1e-6
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
LORA = LoraOptions(rank=2, alpha=4.0, targets=("query", "value"))
RATE, STEPS, CLIP, LEARNING_RATE = 0.33, 12, 1.0, 2e-2
WEIGHTS_ALONE: Mapping[str, Average | TaskArithmetic] = {
    "average": Average(),
    "task arithmetic": TaskArithmetic(scale=1.0),
}
RESULTS = "privacy-emotion.json"


def base_of(suite: Suite, cache: Path) -> Path:
    """The prepared base of seed 0, as `quality.py` makes it."""
    encoder = Checkpoint(embedded_folder(cache, print) / "minilm")
    return cached_base(cache / "bases", encoder, suite.labels, 0, suite.task)


class Bench:
    """A suite with one base and one model per organisation."""

    def __init__(self, suite: Suite, cache: Path, work: Path, rows: int) -> None:
        self.suite, self.work, self.cache = suite, work, cache
        self.base = base_of(suite, cache)
        self.checkpoint = Checkpoint(self.base)
        self.examples = min(rows, max(len(each) for each in suite.train.values()))
        self.max_length = SETTINGS[suite.task].training.max_length
        self.plan = Plan(
            job="bench",
            base=self.checkpoint.sha256,
            manifest=self.checkpoint.manifest,
            task=suite.task,
            labels=suite.labels,
            method=RegMean(),
            examples=self.examples,
            max_length=self.max_length,
            masks="off",
        )
        norms = cached_norms(self.plan, self.base, cache / "norms")
        settings = NoiseSettings(mode="statistics", epsilon=8.0)
        # The layers that the rule keeps at the largest epsilon: one collection serves them all.
        self.noise = noise_of(self.plan, settings, norms, len(suite.train))
        self.terms = self.noise.terms(self.plan.manifest, self.max_length)
        self.groups = [g for g in gram_groups(self.plan.manifest) if g.name in self.terms.groups]
        self.whitening = Whitening.make(
            load_model(self.base),
            load_tokenizer(self.base),
            self.groups,
            self.max_length,
            work / "whitening",
        )

    def sums(self, domain: str, model: Path) -> PrivateGrams:
        """The clipped sums of an organisation."""
        texts = self.suite.train[domain].texts[: self.examples]
        alone = batches(load_tokenizer(self.base), texts, self.max_length, 1)
        units = units_of(len(texts), None, 1)
        return collect_private_grams(
            load_model(model), self.groups, alone, units, self.whitening, self.terms
        )

    def merge(
        self, own: Mapping[str, Path], sums: Mapping[str, PrivateGrams], z: float | None
    ) -> Path:
        """RegMean with noise of multiplier z; without any if None, but clipped all the same."""
        out = self.work / f"merged-{uuid4().hex}"
        released = {domain: self._released(grams, z) for domain, grams in sums.items()}
        writer = CheckpointWriter(out, self.checkpoint, self.plan.blocks)
        models = {domain: Checkpoint(path) for domain, path in own.items()}
        for number, block in enumerate(self.plan.blocks):
            weights, total = self.checkpoint.read(block.shapes), None
            for domain, model in models.items():
                evidence = BlockEvidence(
                    base=weights,
                    own=model.read(block.shapes),
                    tokens=1,
                    grams={g.name: self._evidence(g, released[domain], z) for g in block.groups},
                )
                sent = self.plan.method.contribution(block, evidence)
                total = sent if total is None else total + sent
            assert total is not None
            writer.write(number, self.plan.method.solve(block, total, weights).weights)
        writer.finish()
        return out

    def _released(self, grams: PrivateGrams, z: float | None) -> dict[str, Any]:
        again = copy.deepcopy(grams)
        again._terms = replace(self.terms, multiplier=0.01 if z is None else z)
        return again.release(OsRandomness())

    def _evidence(self, group: Any, released: Mapping[str, Any], z: float | None) -> GramEvidence:
        if group.name not in self.terms.groups:
            return GramEvidence(np.zeros((group.width, group.width)), 0)
        terms = replace(self.terms, multiplier=0.01 if z is None else z)
        ridge = terms.ridge(group.name, len(self.suite.train))
        total = unpack_symmetric(project(released[group.name], group.width, ridge), group.width)
        inverse = self.whitening.inverse(group.name)
        total = inverse @ total @ inverse
        return GramEvidence(
            (total + total.T) / 2, public_rows(group, self.examples, self.max_length)
        )

    def regmean(self, own: Mapping[str, Path]) -> Path:
        """RegMean without noise, from the Gram matrices of all layers."""
        out = self.work / f"merged-{uuid4().hex}"
        sessions = [
            Session(self.plan, self.base, path, self.suite.train[d].texts, self.work / f"off-{d}")
            for d, path in own.items()
        ]
        writer = CheckpointWriter(out, self.checkpoint, self.plan.blocks)
        for number, block in enumerate(self.plan.blocks):
            total = reduce(add, (session.contribute(number) for session in sessions))
            weights = self.checkpoint.read(block.shapes)
            writer.write(number, self.plan.method.solve(block, total, weights).weights)
        writer.finish()
        return out

    def weights_alone(self, own: Mapping[str, Path], method: Average | TaskArithmetic) -> Path:
        """What needs no statistics: the models' average, or the sum of their changes."""
        out = self.work / f"merged-{uuid4().hex}"
        writer = CheckpointWriter(out, self.checkpoint, self.plan.blocks)
        for number, block in enumerate(self.plan.blocks):
            weights = self.checkpoint.read(block.shapes)
            sent = [
                method.contribution(
                    block,
                    BlockEvidence(base=weights, own=Checkpoint(p).read(block.shapes), tokens=1),
                )
                for p in own.values()
            ]
            total = sent[0]
            for each in sent[1:]:
                total = total + each
            writer.write(number, method.solve(block, total, weights).weights)
        writer.finish()
        return out

    def score(self, model: Path, part: str = "test") -> dict[str, float]:
        """Mean accuracy and F1 over the organisations' data."""
        sets = getattr(self.suite, part)
        return asdict(over(self.suite, sets, apply(self.suite, model, sets)))


def own_models(bench: Bench) -> dict[str, Path]:
    """Fine-tuned without noise on all training texts of each organisation."""
    options = SETTINGS[bench.suite.task].training.model_copy(update={"rows": None})
    return {
        domain: cached_finetune(
            bench.cache / "models", bench.base, bench.checkpoint.sha256, examples, options
        )
        for domain, examples in bench.suite.train.items()
    }


def private_models(
    bench: Bench, epsilon: float, rho: float, options: TrainingOptions, pool: Executor
) -> dict[str, Path]:
    """DP-SGD with what is left of epsilon after statistics of rho; each in a process."""
    training = training_for(epsilon, DELTA, RATE, STEPS, rho=rho)
    divisor = RATE * max(len(examples) for examples in bench.suite.train.values())
    noise = TrainingNoise(training, CLIP, divisor)
    terms = repr((bench.checkpoint.sha256, noise, options))
    key = hashlib.sha256(terms.encode()).hexdigest()[:16]
    folders = {d: bench.cache / "private" / f"{key}-{d}-{epsilon:g}" for d in bench.suite.train}
    trained = partial(private_model, bench, options=options, noise=noise)
    return dict(zip(folders, pool.map(trained, folders, folders.values()), strict=True))


def private_model(
    bench: Bench, domain: str, out: Path, *, options: TrainingOptions, noise: TrainingNoise
) -> Path:
    """One organisation's, from the cache if it is there."""
    if not out.is_dir():
        examples = bench.suite.train[domain]
        units = units_of(len(examples), None, 1)
        finetune_with_noise(bench.base, examples, units, options, noise, out, lambda _sha256: None)
        print(f"trained {out.name}", flush=True)
    return out


def collected(bench: Bench, own: Mapping[str, Path], pool: Executor) -> dict[str, PrivateGrams]:
    """The clipped sums of every organisation, each in a process of its own."""
    return dict(zip(own, pool.map(bench.sums, own, own.values()), strict=True))


def noised_line(
    bench: Bench, own: Mapping[str, Path], sums: Mapping[str, PrivateGrams], z: float
) -> dict[str, float]:
    """Scores of RegMean with noise of multiplier z."""
    return bench.score(bench.merge(own, sums, z))


def weights_line(
    bench: Bench, own: Mapping[str, Path], method: Average | TaskArithmetic
) -> dict[str, float]:
    """Scores of a method that needs no statistics."""
    return bench.score(bench.weights_alone(own, method))


def off_line(bench: Bench, own: Mapping[str, Path]) -> dict[str, float]:
    """Scores of RegMean without noise."""
    return bench.score(bench.regmean(own))


def measure(
    bench: Bench,
    end_to_end: Sequence[float],
    training: TrainingOptions,
    pool: Executor,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Every line of the plot that is not known yet."""
    lines: dict[str, Future[dict[str, float]]] = {}
    statistics = {f"statistics {epsilon:g}": epsilon for epsilon in EPSILONS}
    if not known.keys() >= {"off", "average", *statistics}:
        own = own_models(bench)
        lines["off"] = pool.submit(off_line, bench, own)
        lines["average"] = pool.submit(weights_line, bench, own, Average())
        sums = collected(bench, own, pool)
        print("collected", flush=True)
        for name, epsilon in statistics.items():
            z = multiplier_for(epsilon, DELTA)
            lines[name] = pool.submit(noised_line, bench, own, sums, z)
    for epsilon in end_to_end:
        regmean = f"end-to-end {epsilon:g}"
        alone = {f"end-to-end {name} {epsilon:g}": each for name, each in WEIGHTS_ALONE.items()}
        if known.keys() >= {regmean, *alone}:
            continue
        rho = 0.3 * rho_for(epsilon, DELTA)
        private = private_models(bench, epsilon, rho, training, pool)
        for title in [each for each in alone if each not in known]:
            lines[title] = pool.submit(weights_line, bench, private, alone[title])
        if regmean not in known:
            sums, z = collected(bench, private, pool), (2 * rho) ** -0.5
            lines[regmean] = pool.submit(noised_line, bench, private, sums, z)
    found = dict(known)
    for name, line in lines.items():
        found[name] = line.result()
        print(name, found[name], flush=True)
    return found


def known_lines(
    file: Path, setting: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """What an earlier run measured in the same setting."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    before = found.pop("setting")
    if any(before[name] != value for name, value in setting.items()):
        return {}
    same = before["training"] == training
    return {name: v for name, v in found.items() if same or not name.startswith("end-to-end")}


def _alone() -> None:
    torch.set_num_threads(1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Quality against epsilon.")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/blindmerge"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--end-to-end", type=float, nargs="*", default=list(EPSILONS))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=int, default=3000, help="texts of each for statistics")
    parser.add_argument("--test", type=int, default=1000, help="texts of each set of test data")
    options = parser.parse_args()
    suite = read_suite(options.suite)
    train = {
        domain: read_examples(options.suite / domain / "train.jsonl.gz", suite.labels, suite.task)
        for domain in suite.train
    }
    test = {domain: examples.first(options.test) for domain, examples in suite.test.items()}
    with tempfile.TemporaryDirectory(prefix="privacy-") as folder:
        whole, cache = replace(suite, train=train, test=test), options.cache.expanduser()
        found = run(Bench(whole, cache, Path(folder), options.rows), options)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    (options.out / RESULTS).write_text(text)


def run(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Every line, and the setting they are from."""
    setting = {
        "groups": len(bench.groups),
        "examples": bench.examples,
        "tested": {domain: len(examples) for domain, examples in bench.suite.test.items()},
        "owners": len(bench.suite.train),
        "delta": DELTA,
    }
    ratio = noise_to_signal(
        width=max(group.width for group in bench.groups),
        examples=bench.examples,
        owners=len(bench.suite.train),
        layers=len(bench.groups),
        multiplier=multiplier_for(8.0, DELTA),
    )
    print(f"{len(bench.groups)} groups, noise to signal {ratio:.1f} at epsilon 8", flush=True)
    training = TrainingOptions(
        learning_rate=LEARNING_RATE, max_length=bench.max_length, lora=LORA, weight_decay=0.0
    )
    terms = {
        "rate": RATE,
        "steps": STEPS,
        "clip": CLIP,
        "options": training.model_dump(mode="json"),
    }
    known = known_lines(options.out / RESULTS, setting, terms)
    context = get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context, initializer=_alone) as pool:
        found = measure(bench, options.end_to_end, training, pool, known)
    found["setting"] = setting | {"noise_to_signal_at_8": ratio, "training": terms}
    return found


if __name__ == "__main__":
    main()
