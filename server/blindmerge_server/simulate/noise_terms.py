"""The public terms of a job's noise, from the base model on public texts alone.

Every group of layers gets about the same share of the clip: its weight is one over the median norm
of a public sentence's Gram matrix, in the coordinates in which noise is added (`Whitening`). The
clip is the median joint norm. An owner's own texts may have other norms; that costs utility, and
no privacy. Layers that noise would drown, by a rule on public numbers, are left to the average.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic import ValidationError

from blindmerge import canonical
from blindmerge.errors import ConfigInvalid
from blindmerge.files import replacing
from blindmerge.manifest import Group
from blindmerge.merge import Evidence
from blindmerge.plan import Plan
from blindmerge.privacy.terms import REASONS, GramNoise, Noise, alone, gram_groups
from blindmerge.privacy.utility import DROWNED, advice, noise_to_signal
from blindmerge.statistic import Array
from blindmerge_client.batches import batches
from blindmerge_client.collect.private import examples_alone, units_of
from blindmerge_client.collect.public_texts import public_texts
from blindmerge_client.collect.whitening import Whitening
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_server.noise_settings import NoiseSettings

__all__ = ["cached_norms", "noise_of", "public_norms", "released", "warning_of", "with_noise"]

_RULE = 1  # rises when the same base gets other norms
_TEXTS = 64


def noise_of(plan: Plan, settings: NoiseSettings, norms: dict[str, float], owners: int) -> Noise:
    """The noise of a plan.

    plan: the job without noise.   norms: of its base (`public_norms`).
    """
    grams = None
    if Evidence.GRAM in plan.method.needs:
        groups = gram_groups(plan.manifest)
        kept = {group.name for group in released(groups, settings, plan.examples, owners)}
        grams = GramNoise(
            multiplier=settings.statistics_multiplier,
            clip=settings.clip or float(np.sqrt(len(kept))),
            weights=tuple(1 / norms[g.name] if g.name in kept else 0.0 for g in groups),
        )
    noise = Noise(
        mode=settings.mode,
        epsilon=settings.epsilon or 0.0,
        delta=settings.delta,
        unit=settings.unit,
        unit_examples=settings.unit_examples,
        grams=grams,
    )
    if settings.epsilon is None:
        noise = noise.model_copy(update={"epsilon": noise.cost.epsilon(settings.delta)})
    return noise


def with_noise(plan: Plan, base: Path, settings: NoiseSettings, owners: int, cache: Path) -> Plan:
    """The plan with noise.   plan: without.   base: the checkpoint that it names.

    Raises ConfigInvalid if the method cannot run with it, or the numbers are out of range.
    """
    reason = REASONS[plan.method.name]
    if reason is not None:
        raise ConfigInvalid(
            f"the method '{plan.method.name}' cannot run with noise: {reason}",
            hint="take average, task-arithmetic or regmean here and in `compare`, or no noise",
        )
    grams = Evidence.GRAM in plan.method.needs
    norms = cached_norms(plan, base, cache) if grams else {}
    fields = {name: getattr(plan, name) for name in Plan.model_fields}
    try:
        return Plan.model_validate(fields | {"noise": noise_of(plan, settings, norms, owners)})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ConfigInvalid(f"noise: {first['msg'].removeprefix('Value error, ')}") from error


def released(
    groups: Sequence[Group], settings: NoiseSettings, examples: int, owners: int
) -> tuple[Group, ...]:
    """The groups whose Gram matrices are released: the widest are left out while they drown."""
    kept = tuple(group for group in groups if alone(group))
    while settings.layers == "auto":
        widest = max(group.width for group in kept)
        narrower = tuple(group for group in kept if group.width < widest)
        if not narrower or _ratio(kept, settings, examples, owners) < DROWNED:
            break
        kept = narrower
    return kept


def warning_of(plan: Plan, settings: NoiseSettings, owners: int) -> str | None:
    """What to do if noise will drown the statistics all the same; None if it will not."""
    if Evidence.GRAM not in plan.method.needs:
        return None
    kept = released(gram_groups(plan.manifest), settings, plan.examples, owners)
    return advice(**_numbers(kept, settings, plan.examples, owners))


def _ratio(groups: Sequence[Group], settings: NoiseSettings, examples: int, owners: int) -> float:
    return noise_to_signal(**_numbers(groups, settings, examples, owners))


def _numbers(
    groups: Sequence[Group], settings: NoiseSettings, examples: int, owners: int
) -> dict[str, Any]:
    return {
        "width": max(group.width for group in groups),
        "examples": examples,
        "owners": owners,
        "layers": len(groups),
        "multiplier": settings.statistics_multiplier,
    }


def cached_norms(plan: Plan, base: Path, cache: Path) -> dict[str, float]:
    """`public_norms`, made once for each base and length."""
    content = canonical.encode([_RULE, plan.base, plan.max_length])
    file = cache / f"{hashlib.sha256(content).hexdigest()}.cbor"
    if not file.exists():
        with replacing(file) as temporary:
            temporary.write_bytes(canonical.encode(public_norms(plan, base)))
    found: Any = canonical.decode(file.read_bytes())
    return dict(found)


def public_norms(plan: Plan, base: Path) -> dict[str, float]:
    """The median norm of the Gram matrix of a public sentence, by group, whitened."""
    model, tokenizer, groups = (
        load_model(base),
        load_tokenizer(base),
        tuple(filter(alone, gram_groups(plan.manifest))),
    )
    # Other sentences than those the whitening is made from, whose norms it evens out.
    texts = public_texts(_TEXTS, np.random.default_rng(1))
    singles = batches(tokenizer, texts, plan.max_length, 1)
    units = units_of(len(texts), None, 1)
    with TemporaryDirectory(prefix="blindmerge-norms-") as folder:
        whitening = Whitening.make(
            model, tokenizer, groups, plan.max_length, Path(folder) / "whitening"
        )
        matrices = {group.name: whitening.matrix(group.name) for group in groups}
        norms: dict[str, list[float]] = {name: [] for name in matrices}
        for parts in examples_alone(model, groups, singles, units):
            for name, rows in parts.items():
                norms[name].append(_norm(rows @ matrices[name]))
    return {name: float(np.median(each)) for name, each in norms.items()}


def _norm(rows: Array) -> float:
    """||X^T X||_F = ||X X^T||_F."""
    small = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    return float(np.linalg.norm(small))
