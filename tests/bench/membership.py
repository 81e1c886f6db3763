"""What noise buys: two attacks that ask whether an example was there, before and after.

    python tests/bench/membership.py [--out DIR]

Row space, on statistics: with fewer rows than a layer is wide, a row lies in the row space of a
Gram matrix if and only if it was there. The score is the part of a text's rows that lies in it.
Inputs are made up; what counts is their number.

LiRA (Carlini et al. 2022), on models: shadow models, each trained on a random half of the examples,
give for every example the distribution of its logit margin with and without it. The likelihood
ratio attacks further models. A pico BERT whose labels are random, so that it has to learn by heart.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from blindmerge.privacy.accountant import Training, multiplier_for, training_for
from blindmerge.privacy.mechanism import GroupTerms, NoiseTerms, PrivateGrams, project
from blindmerge.secagg.secret import OsRandomness
from blindmerge.statistic import Array, unpack_symmetric
from blindmerge_client.collect.private import units_of
from blindmerge_client.data import Examples
from blindmerge_client.dp_sgd import TrainingNoise, finetune_with_noise
from blindmerge_client.options import TrainingOptions
from blindmerge_client.predict import predict
from support.pico import pico_encoder, pico_examples

DELTA = 1e-5
WIDTH, ROWS, MEMBERS = 128, 4, 24
EXAMPLES, SHADOWS, TARGETS, STEPS, RATE = 32, 24, 12, 40, 0.5


def auc(inside: Array, outside: Array) -> float:
    """The chance that a member has the higher score."""
    return float(np.mean(inside[:, None] > outside) + np.mean(inside[:, None] == outside) / 2)


def row_space(epsilon: float | None, seed: int) -> float:
    """AUC of the row-space attack on one owner's Gram matrix of MEMBERS * ROWS < WIDTH rows."""
    rng = np.random.default_rng(seed)
    there, elsewhere = rng.standard_normal((2, MEMBERS, ROWS, WIDTH))
    if epsilon is None:
        rows = there.reshape(-1, WIDTH)
        gram = rows.T @ rows
    else:
        clip = float(np.median([np.linalg.norm(x @ x.T) for x in there]))
        z = multiplier_for(epsilon, DELTA)
        grams = PrivateGrams(NoiseTerms({"layer": GroupTerms(WIDTH, 1.0)}, clip, z, ROWS))
        for x in there:
            grams.add({"layer": x})
        packed = grams.release(OsRandomness())["layer"]
        gram = unpack_symmetric(project(packed, WIDTH, 0.0), WIDTH)
    basis = np.linalg.eigh(gram)[1][:, -MEMBERS * ROWS :]

    def inside(x: Array) -> float:
        return float(np.sum((x @ basis) ** 2) / np.sum(x**2))

    return auc(np.array([inside(x) for x in there]), np.array([inside(x) for x in elsewhere]))


def margins(base: Path, folder: Path, data: Examples, noise: TrainingNoise, there: Any) -> Array:
    """The logit margin of every example, of a model that was trained on those that are there."""
    numbers = np.flatnonzero(there)
    mine = Examples(tuple(data.texts[n] for n in numbers), tuple(data.labels[n] for n in numbers))
    options = TrainingOptions(learning_rate=1e-2, max_length=16, weight_decay=0.0)
    units = units_of(len(mine), None, 1)
    finetune_with_noise(base, mine, units, options, noise, folder, lambda _model: None)
    logits, labels = predict(folder, data.texts, 16), np.array(data.labels)
    right = logits[np.arange(len(labels)), labels]
    others = np.where(np.eye(logits.shape[1], dtype=bool)[labels], -np.inf, logits)
    return np.asarray(right - others.max(axis=1))


def lira(epsilon: float | None, work: Path) -> dict[str, float]:
    """AUC, and the part of members found at 5 % false alarms."""
    rng = np.random.default_rng(0)
    data = pico_examples(EXAMPLES, seed=1)
    labels = tuple(int(label) for label in rng.integers(0, 2, EXAMPLES))
    data = Examples(data.texts, labels)
    base = pico_encoder(work / "base", labels=("no", "yes"))
    quiet = Training(multiplier=1e-3, rate=RATE, steps=STEPS)
    training = quiet if epsilon is None else training_for(epsilon, DELTA, RATE, STEPS)
    noise = TrainingNoise(training, 1.0, RATE * EXAMPLES / 2)
    there = rng.random((SHADOWS + TARGETS, EXAMPLES)) < 0.5
    found = np.array(
        [margins(base, work / f"model-{n}", data, noise, row) for n, row in enumerate(there)]
    )
    shadows, targets = found[:SHADOWS], found[SHADOWS:]
    scores = np.empty_like(targets)
    for example in range(EXAMPLES):
        inside = shadows[there[:SHADOWS, example], example]
        outside = shadows[~there[:SHADOWS, example], example]
        spread = max(
            1e-3, float(np.std(np.concatenate([inside - inside.mean(), outside - outside.mean()])))
        )
        scores[:, example] = norm.logpdf(targets[:, example], inside.mean(), spread) - norm.logpdf(
            targets[:, example], outside.mean(), spread
        )
    members = there[SHADOWS:]
    threshold = np.quantile(scores[~members], 0.95)
    return {
        "auc": auc(scores[members], scores[~members]),
        "found_at_5_percent": float(np.mean(scores[members] > threshold)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Membership inference before and after noise.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"delta": DELTA, "row space": {}, "lira": {}}
    for epsilon in (None, 8.0, 1.0):
        name = "off" if epsilon is None else f"{epsilon:g}"
        found["row space"][name] = float(np.mean([row_space(epsilon, seed) for seed in range(20)]))
        print("row space", name, found["row space"][name], flush=True)
    for epsilon in (None, 8.0, 1.0):
        name = "off" if epsilon is None else f"{epsilon:g}"
        with tempfile.TemporaryDirectory(prefix="lira-") as folder:
            found["lira"][name] = lira(epsilon, Path(folder))
        print("lira", name, found["lira"][name], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "membership.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
