"""Was this text there? Of few rows a Gram matrix tells it exactly; with noise it tells little."""

import math

from bench.membership import DELTA, row_space


def test_without_noise_every_member_is_found() -> None:
    assert row_space(None, seed=0) == 1.0


def test_with_noise_members_are_found_no_better_than_epsilon_allows() -> None:
    """(epsilon, delta) bounds the AUC of any attack: with slope e^epsilon, and its mirror image.

    The ROC lies below min(1, e^eps x + delta, 1 - e^-eps (1 - delta - x)), so that the AUC is at
    most 1 - (1 - delta)^2 / (1 + e^eps). Of 24 members and as many others an AUC is off by 0.083
    (Hanley and McNeil 1982), the mean of 6 by 0.034.
    """
    epsilon = 0.5
    found = sum(row_space(epsilon, seed) for seed in range(6)) / 6
    bound = 1 - (1 - DELTA) ** 2 / (1 + math.exp(epsilon))
    assert found < bound + 3 * 0.034
    assert bound < 0.63
