"""The ring carries what owners send with noise, and the clip follows from public numbers."""

from pathlib import Path

import numpy as np
import pytest

from blindmerge.encoding import Bits
from blindmerge.merge import Evidence
from blindmerge.privacy.accountant import epsilon_of, multiplier_for
from blindmerge.privacy.terms import gram_groups
from blindmerge.privacy.utility import DROWNED, noise_to_signal
from blindmerge_client.session import Session
from blindmerge_server.noise_settings import NoiseSettings
from blindmerge_server.simulate.bounds import cached_layouts, public_layouts
from blindmerge_server.simulate.noise_terms import (
    cached_norms,
    noise_of,
    public_norms,
    released,
    warning_of,
)
from support.jobs import Job, make_job, under_masks, with_plan
from support.noise import account_of, with_noise


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("job"), owners=3, rows_factor=0.0)


@pytest.mark.parametrize("bits", [64, 48])
@pytest.mark.parametrize("multiplier", [0.5, 20.0])
def test_what_has_noise_fits_into_the_ring_and_keeps_its_digits(
    bits: Bits, multiplier: float, job: Job, tmp_path: Path
) -> None:
    masked = under_masks(with_noise(job, multiplier, clip=50.0), bits)
    (parts,) = public_layouts(masked.plan, masked.base)
    account = account_of(tmp_path / "ledger")
    own = Session(masked.plan, job.base, job.owners[0], job.texts[0], tmp_path / "session", account)
    for number, part in enumerate(parts):
        statistic = own.contribute(number)
        rings = [part.encode(statistic, block) for block in range(part.blocks)]
        into = part.empty()
        for block, ring in enumerate(rings):
            part.decode(ring, block, into)
        for name, array in into.items():
            largest = float(np.abs(statistic[name]).max())
            # The bound of an array may be 2^30 times as large as what is sent, and no more.
            step = 2.0 ** (30 - bits) * largest
            assert np.abs(array - statistic[name]).max() <= step, name


def test_layouts_in_the_cache_know_the_noise(job: Job, tmp_path: Path) -> None:
    plain = under_masks(job).plan
    loud = under_masks(with_noise(job)).plan
    assert cached_layouts(plain, job.base, tmp_path) != cached_layouts(loud, job.base, tmp_path)


def test_norms_are_the_same_everywhere_and_of_no_owner(job: Job, tmp_path: Path) -> None:
    norms = public_norms(job.plan, job.base)
    assert cached_norms(job.plan, job.base, tmp_path) == norms
    assert cached_norms(job.plan, job.base, tmp_path) == norms
    assert norms.keys() == {group.name for group in gram_groups(job.plan.manifest)}
    assert min(norms.values()) > 0


def test_the_plans_noise_costs_what_was_asked(job: Job) -> None:
    norms = {group.name: 2.0 for group in gram_groups(job.plan.manifest)}
    settings = NoiseSettings(mode="statistics", epsilon=4.0, layers="all")
    noise = noise_of(job.plan, settings, norms, owners=3)
    assert noise.grams is not None
    assert noise.epsilon == 4.0
    assert 3.99 < noise.cost.epsilon(1e-6) <= 4.0
    assert noise.grams.weights == (0.5,) * len(norms)
    # A public sentence of median norms has the joint norm of the clip.
    assert noise.grams.clip == pytest.approx(len(norms) ** 0.5)
    with_plan(job, noise=noise)
    other = NoiseSettings(mode="statistics", multiplier=2.0)
    assert noise_of(job.plan, other, norms, owners=3).epsilon == pytest.approx(
        epsilon_of(0.125, 1e-6)
    )


def test_a_method_without_gram_matrices_needs_no_clip(job: Job) -> None:
    plan = with_plan(job, method={"name": "average"}).plan
    assert Evidence.GRAM not in plan.method.needs
    settings = NoiseSettings(mode="statistics", epsilon=4.0)
    assert noise_of(plan, settings, {}, owners=3).grams is None
    assert warning_of(plan, settings, owners=3) is None


def test_wide_layers_are_averaged_if_noise_would_drown_them(job: Job) -> None:
    groups = gram_groups(job.plan.manifest)
    widths = sorted({group.width for group in groups})
    few, many = 30, 100_000

    def kept(examples: int, layers: str) -> set[int]:
        settings = NoiseSettings.model_validate(
            {"mode": "statistics", "epsilon": 8.0, "layers": layers}
        )
        return {group.width for group in released(groups, settings, examples, owners=5)}

    assert kept(many, "auto") == set(widths)
    assert kept(few, "auto") == {widths[0]}
    assert kept(few, "all") == set(widths)


def test_the_warning_proposes_the_average_and_looks_at_public_numbers_only(job: Job) -> None:
    settings = NoiseSettings(mode="statistics", epsilon=1.0)
    plan = with_plan(job, examples=100).plan
    warning = warning_of(plan, settings, owners=5)
    assert warning is not None
    assert "take the method 'average'" in warning
    kept = released(gram_groups(plan.manifest), settings, 100, owners=5)
    ratio = noise_to_signal(
        width=max(group.width for group in kept),
        examples=100,
        owners=5,
        layers=len(kept),
        multiplier=multiplier_for(1.0, 1e-6),
    )
    assert ratio >= DROWNED
    assert warning_of(with_plan(job, examples=100_000).plan, settings, owners=5) is None
