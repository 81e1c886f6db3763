"""Whether noise will drown the Gram matrices, from public numbers alone.

Let every group have the same share of the clip: an example moves a group's Gram matrix by
F = C / (a sqrt(layers)) at most. The sum of the owners' noise matrices has a spectral norm of
z F sqrt(layers) sqrt(2 width) sqrt(owners) (PROOF.md §7.3). The sum of the Gram matrices has
a trace of at least owners * examples * F, as a trace is never below the Frobenius norm, so its mean
eigenvalue is at least owners * examples * F / width. The ratio decides (measured: tests/bench).
"""

import math

__all__ = ["DROWNED", "advice", "noise_to_signal"]

DROWNED = 4.5
"""The ratio from which on about half of what RegMean gains over the average is lost."""


def noise_to_signal(
    *, width: int, examples: int, owners: int, layers: int, multiplier: float
) -> float:
    """Largest eigenvalue of the noise over the mean eigenvalue of the sum.

    width: inputs of the widest group.   examples: units of each owner.   layers: groups that
    share the clip.   multiplier: z (`accountant.multiplier_for`).
    """
    noise = multiplier * math.sqrt(2 * layers * width)
    return noise * width / (examples * math.sqrt(owners))


def advice(*, width: int, examples: int, owners: int, layers: int, multiplier: float) -> str | None:
    """What to do if noise will drown the statistics; None if it will not."""
    ratio = noise_to_signal(
        width=width, examples=examples, owners=owners, layers=layers, multiplier=multiplier
    )
    if ratio < DROWNED:
        return None
    needed = math.ceil(examples * ratio / DROWNED)
    return (
        f"with {examples} examples per owner this noise drowns the statistics: take the method "
        f"'average', which needs none, or about {needed} examples, fewer layers or a larger epsilon"
    )
