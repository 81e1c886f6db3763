"""Speed and memory of the merge engine against its peers, as ratios measured in one run.

    PYTHONPATH=tests python tests/bench/engine.py [--tokens N] [--layers N] [--threads N]

Contestants are processes of their own (`engine_worker.py`), with as many threads each, and take
turns, so that a busy machine slows all of them; the median of the ratios of the rounds counts.
Peers: fusion_bench, in an environment of its own, and MergeLM's hooks. The model is MPNet-base.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import AutoConfig

from bench.engine_report import Results, Row, table
from bench.engine_worker import INNER, SHAPES, WIDTH
from bench.machine import processor
from bench.random_texts import random_batches
from blindmerge.merge.ridge import solve_ridge
from blindmerge.statistic import Array, pack_symmetric, packed_size
from support.real_models import mpnet

ROUNDS = 5
MEMORY = (2200, 16)  # tokens, more than a block of rows; texts in a batch
PEER = "fusion-bench==0.2.33"
COLLECT = (
    *("forward", "blindmerge", "blindmerge, float32", "MergeLM", "fusion_bench"),
    *("MergeLM, texts not sorted", "fusion_bench, texts not sorted"),
)
SOLVE = ("solve, blindmerge", "solve, fusion_bench")
SERVER = ("server, 5 owners", "server, 50 owners")
Runs = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Work:
    """What contestants work on: the model's first layers, and files with batches."""

    model: Path
    layers: int
    batches: Path
    threads: int


class Worker:
    """A contestant, ready to run."""

    def __init__(self, name: str, python: Path, cache: Path, work: Work) -> None:
        script = Path(__file__).with_name("engine_worker.py")
        variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self._process = subprocess.Popen(
            [python, script, name, work.model, str(work.layers), work.batches],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(cache / f"{name}.log").open("w"),
            text=True,
            env={**os.environ, **dict.fromkeys(variables, str(work.threads))},
        )
        if self._answer().strip() != "ready":
            raise SystemExit(f"'{name}' does not start, see {cache / f'{name}.log'}")

    def _answer(self) -> str:
        return self._process.stdout.readline() if self._process.stdout else ""

    def run(self) -> dict[str, float]:
        """Once: seconds, cpu_seconds, peak_bytes."""
        print("run", file=self._process.stdin, flush=True)
        found: dict[str, float] = json.loads(self._answer())
        return found

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def peers(cache: Path) -> Path | None:
    """The Python of an environment with fusion_bench and our torch; None if pip cannot make it."""
    folder = cache / "peers"
    python = folder / "bin" / "python"
    if not python.exists():
        same = [f"{name}=={version(name)}" for name in ("torch", "transformers", "numpy")]
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *same, PEER]
        if subprocess.run(command, check=False).returncode != 0:
            return None
    return python


def turns(names: Sequence[str], python: Path | None, cache: Path, work: Work, rounds: int) -> Runs:
    """Every contestant once to warm up, which tells its memory, then in turns."""
    runs: Runs = {}
    with ExitStack() as stack:
        workers = {}
        for name in names:
            chosen = python if "fusion_bench" in name else Path(sys.executable)
            if chosen is not None:
                workers[name] = stack.enter_context(Worker(name, chosen, cache, work))
        for number in range(rounds + 1):
            for name, worker in workers.items():
                runs.setdefault(name, []).append(worker.run())
                print(f"{number}/{rounds} {name}: {runs[name][-1]}", flush=True)
    return runs


def speed(runs: Runs, ours: str, other: str, key: str = "seconds") -> float:
    """Ours to the other's, median over the rounds after the first."""
    pairs = zip(runs[ours][1:], runs[other][1:], strict=True)
    return median(a[key] / b[key] for a, b in pairs)


def compared(runs: Runs, peaks: Runs, what: str, ours: str, other: str) -> Row:
    """A row about time, and memory of the first run."""
    memory = peaks[ours][0]["peak_bytes"], peaks[other][0]["peak_bytes"]
    times = speed(runs, ours, other), speed(runs, ours, other, "cpu_seconds")
    return Row(what, ours, other, *times, memory[0] / memory[1])


def residuals(condition: float) -> tuple[float, float]:
    """Of our solve and of a float32 inverse, |S W - M| / |M|, five owners of width 768."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    half = q * np.geomspace(1.0, condition**-0.5, WIDTH)
    base = half @ half.T
    grams = [base * scale for scale in (0.5, 0.8, 1.0, 1.3, 2.0)]
    weights = [rng.standard_normal((WIDTH, WIDTH)) / 30 for _ in grams]
    total = np.sum(grams, axis=0)
    moment = np.sum([g @ w for g, w in zip(grams, weights, strict=True)], axis=0)
    ours = solve_ridge(pack_symmetric(total), moment, np.zeros_like(moment), 0.0)
    if ours is None or ours.ridge:
        raise SystemExit("the solve needed a ridge")
    theirs = _inverse(grams, weights)
    found = [np.linalg.norm(total @ w - moment) for w in (ours.weights, theirs)]
    size = np.linalg.norm(moment)
    return float(found[0] / size), float(found[1] / size)


def _inverse(grams: Sequence[Array], weights: Sequence[Array]) -> Array:
    """The formula of fusion_bench and MergeLM (`merging_with_regmean_weights`)."""
    singles = [torch.from_numpy(gram).float() for gram in grams]
    products = [g @ torch.from_numpy(w).float() for g, w in zip(singles, weights, strict=True)]
    merged: Array = (
        (torch.inverse(torch.stack(singles).sum(0)) @ torch.stack(products).sum(0)).double().numpy()
    )
    return merged


def upload() -> dict[str, float]:
    """Numbers and bytes of one transformer layer at an owner, as multiples.

    Against one float32 Gram matrix per linear layer; with the weights, against those besides.
    """
    naive = sum(inputs**2 for inputs, _, _ in SHAPES)
    triangles = 3 * packed_size(WIDTH + 1) + packed_size(INNER + 1)
    weights = sum(inputs * outputs for inputs, outputs, _ in SHAPES)
    everything = triangles + 2 * weights  # deltas and moments
    return {
        "triangles, numbers": triangles / naive,
        **{f"triangles, {bits} bits": triangles * bits / (naive * 32) for bits in (32, 48, 64)},
        "all that is sent, numbers": everything / (naive + weights),
        **{
            f"all that is sent, {bits} bits": everything * bits / ((naive + weights) * 32)
            for bits in (32, 48, 64)
        },
    }


def machine() -> dict[str, object]:
    """Where it was measured."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy", "torch", "transformers")},
        "peer": PEER,
    }


def batches(tokens: int, rows: int, path: Path, vocabulary: int) -> int:
    """Writes batches of `rows` texts, at least so many tokens in all; says how many it has."""
    found = random_batches(tokens, rows, vocabulary)
    torch.save([batch.inputs for batch in found], path)
    return sum(int(batch.inputs["attention_mask"].sum()) for batch in found)


def measure(tokens: int, layers: int, threads: int, rounds: int, cache: Path) -> Results:
    """Everything; minutes. Memory is that of the whole model, in a run of its own."""
    cache.mkdir(parents=True, exist_ok=True)
    python, folder = peers(cache), mpnet(cache)
    config = AutoConfig.from_pretrained(folder)
    many, few = cache / "many.pt", cache / "few.pt"
    tokens = batches(tokens, 64, many, config.vocab_size)
    batches(*MEMORY, few, config.vocab_size)
    whole = Work(folder, config.num_hidden_layers, few, threads)
    part = Work(folder, layers, many, threads)
    runs = turns(COLLECT, python, cache, part, rounds)
    runs |= turns(SOLVE, python, cache, part, rounds)
    peaks = turns([*COLLECT, *SERVER], python, cache, whole, 0) | {
        n: runs[n] for n in SOLVE if n in runs
    }
    rows = [compared(runs, peaks, "collecting", ours, "forward") for ours in COLLECT[1:3]]
    for peer in (name for name in COLLECT[3:] if name in runs):
        rows += [compared(runs, peaks, "collecting", ours, peer) for ours in COLLECT[1:3]]
    if SOLVE[1] in runs:
        rows.append(compared(runs, peaks, "solve", *SOLVE))
    few_owners, many_owners = (peaks[name][0]["peak_bytes"] for name in SERVER)
    errors = {f"{condition:g}": residuals(condition) for condition in (1e4, 1e6, 1e8)}
    runs |= {f"{name}, memory": found for name, found in peaks.items()}
    return Results(
        machine(),
        threads,
        layers,
        tokens,
        rounds,
        rows,
        many_owners / few_owners,
        errors,
        upload(),
        runs,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Speed and memory of the merge engine.")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=12, help="of the model that is timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results = measure(
        options.tokens, options.layers, options.threads, options.rounds, options.cache.resolve()
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "engine.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    (options.out / "engine.md").write_text(table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
