"""The rule on public numbers, against matrices for which its bounds are equalities."""

import numpy as np
import pytest

from blindmerge.privacy.mechanism import GroupTerms, NoiseTerms
from blindmerge.privacy.utility import DROWNED, advice, noise_to_signal

PUBLIC = {"width": 768, "examples": 30_000, "owners": 5, "layers": 48}


def test_the_ratio_is_noise_edge_over_mean_eigenvalue() -> None:
    width, examples, owners, layers, multiplier = 20, 50, 3, 4, 1.5
    groups = {str(group): GroupTerms(width, 1.0) for group in range(layers)}
    terms = NoiseTerms(groups, clip=1.0, multiplier=multiplier, most_rows=1)
    # Examples of one row: their Gram matrix has one eigenvalue, the norm. All reach the clip.
    rows = np.random.default_rng(0).standard_normal((owners * examples, width))
    rows *= (terms.clip / layers**0.5) ** 0.5 / np.linalg.norm(rows, axis=1, keepdims=True)
    mean_eigenvalue = np.linalg.eigvalsh(rows.T @ rows).mean()
    noise_edge = terms.noise_std("0") * (2 * width) ** 0.5 * owners**0.5
    ratio = noise_to_signal(
        width=width, examples=examples, owners=owners, layers=layers, multiplier=multiplier
    )
    assert ratio == pytest.approx(noise_edge / mean_eigenvalue, rel=1e-12)


def test_advice_is_given_where_noise_drowns_the_statistics_and_helps() -> None:
    assert advice(**PUBLIC, multiplier=0.69) is None
    few = PUBLIC | {"examples": 1000}
    text = advice(**few, multiplier=4.53)
    assert text is not None
    assert "'average'" in text
    needed = int(text.partition("about ")[2].split()[0])
    assert noise_to_signal(**few | {"examples": needed}, multiplier=4.53) <= DROWNED
    assert noise_to_signal(**few | {"examples": needed - 1}, multiplier=4.53) > DROWNED


def test_more_data_or_owners_help_and_wider_layers_or_more_of_them_do_not() -> None:
    ratio = noise_to_signal(**PUBLIC, multiplier=1.0)
    for name in ("examples", "owners"):
        assert noise_to_signal(**PUBLIC | {name: 2 * PUBLIC[name]}, multiplier=1.0) < ratio
    for name in ("width", "layers"):
        assert noise_to_signal(**PUBLIC | {name: 2 * PUBLIC[name]}, multiplier=1.0) > ratio
