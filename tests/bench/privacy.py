"""What noise costs: the sampler's speed against OpenDP's, and what is left of RegMean.

Synthetic: every owner has inputs of its own covariance (a power law in a basis that is rotated a
little) and its own difference from the base. Noise has the size that `layers` groups with one
clip have, the median norm of an example. Loss: 0 for RegMean without noise, 1 for the average.
"""

import time
from fractions import Fraction

import numpy as np
import opendp.prelude as dp

from blindmerge.merge.ridge import solve_ridge
from blindmerge.privacy.accountant import multiplier_for
from blindmerge.privacy.mechanism import project
from blindmerge.privacy.sampler import DiscreteGaussian
from blindmerge.privacy.utility import noise_to_signal
from blindmerge.secagg.secret import OsRandomness
from blindmerge.statistic import Array, pack_symmetric, unpack_symmetric

DELTA, ROWS, OUTPUTS, RIDGE, SEEDS = 1e-6, 32, 16, 0.01, 3
SIZES = ((64, 1000, 5), (64, 4000, 5), (128, 1000, 5), (128, 4000, 10))


def sampler_speed() -> None:
    """CPU time per sample, ours and OpenDP's in turns."""
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    print("| sigma | ours, us | OpenDP, us | times |\n|---|---|---|---|")
    for sigma in (1.0, 1000.0, 2.0**38):
        theirs, zeros = dp.m.make_gaussian(*space, scale=sigma), [0] * 10_000
        ours = DiscreteGaussian(Fraction(sigma) ** 2)
        pairs = []
        for _ in range(5):
            start = time.process_time()
            ours.sample(500_000, OsRandomness())
            middle = time.process_time()
            theirs(zeros)
            pairs.append(((middle - start) / 0.5, (time.process_time() - middle) / 0.01))
        ratio = np.median([their / our for our, their in pairs])
        our, their = np.median(pairs, axis=0)
        print(f"| {sigma:g} | {our:.2f} | {their:.1f} | {ratio:.0f} |")


def _owner(width: int, examples: int, rng: np.random.Generator) -> tuple[Array, Array, float]:
    """Gram matrix, difference from the base, and the median norm of an example's Gram matrix."""
    basis = np.linalg.qr(np.eye(width) + 0.5 / width**0.5 * rng.standard_normal((width, width)))[0]
    scales = np.arange(1, width + 1.0) ** -0.5 * rng.uniform(0.3, 1.7, width)
    total = np.zeros((width, width))
    norms = []
    for _ in range(max(1, examples // 2000)):
        rows = rng.standard_normal((min(examples, 2000), ROWS, width)) * scales @ basis.T
        norms += [float(np.linalg.norm(x @ x.T)) for x in rows[:50]]
        flat = rows.reshape(-1, width)
        total += flat.T @ flat
    difference = rng.standard_normal((width, OUTPUTS))
    return total, difference, float(np.median(norms))


def _solved(grams: list[Array], differences: list[Array]) -> Array:
    mean = np.mean(differences, axis=0)
    total = np.sum(grams, axis=0)
    moment = np.sum([g @ d for g, d in zip(grams, differences, strict=True)], axis=0)
    solved = solve_ridge(pack_symmetric(total), moment, mean, RIDGE)
    return mean if solved is None else solved.weights


def loss(width: int, examples: int, owners: int, layers: int, epsilon: float, seed: int) -> float:
    """0 without noise, 1 for the average."""
    rng = np.random.default_rng(seed)
    data = [_owner(width, examples, rng) for _ in range(owners)]
    grams, differences = [each[0] for each in data], [each[1] for each in data]
    std = multiplier_for(epsilon, DELTA) * layers**0.5 * float(np.median([d[2] for d in data]))
    ridge = 0.3 * std * (2 * width / owners) ** 0.5
    noisy = []
    for gram in grams:
        noise = rng.standard_normal((width, width)) * std
        symmetric = (noise + noise.T) / 2  # std on the diagonal, std / sqrt(2) off it
        packed = project(pack_symmetric(gram + symmetric), width, ridge)
        noisy.append(unpack_symmetric(packed, width))

    def error(weights: Array) -> float:
        gaps = [weights - d for d in differences]
        return sum(float(np.sum(gap * (g @ gap))) for g, gap in zip(grams, gaps, strict=True))

    exact = error(_solved(grams, differences))
    average = error(np.mean(differences, axis=0))
    return (error(_solved(noisy, differences)) - exact) / (average - exact)


def utility() -> None:
    """Loss against the ratio of `noise_to_signal`."""
    names = ("width", "examples", "owners", "layers", "epsilon", "ratio", "loss")
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    cases = [
        (width, examples, owners, 48, epsilon)
        for width, examples, owners in SIZES
        for epsilon in (0.5, 1.0, 2.0, 4.0, 8.0)
    ]
    rows = []
    for width, examples, owners, layers, epsilon in cases:
        ratio = noise_to_signal(
            width=width,
            examples=examples,
            owners=owners,
            layers=layers,
            multiplier=multiplier_for(epsilon, DELTA),
        )
        seeds = [loss(width, examples, owners, layers, epsilon, seed) for seed in range(SEEDS)]
        rows.append((ratio, (width, examples, owners, layers, epsilon), float(np.mean(seeds))))
    for ratio, case, mean in sorted(rows):
        print(
            "| " + " | ".join(f"{number:g}" for number in case) + f" | {ratio:.2f} | {mean:.3f} |"
        )


if __name__ == "__main__":
    sampler_speed()
    print()
    utility()
