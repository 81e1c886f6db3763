"""Gram matrices with noise, of all groups of a model at once.

The clip is joint over all layers, so a unit needs all its inputs before any of them counts. Every
example goes through the model alone, without padding: not even in the last bit of a float does
what is added for one unit depend on another (PROOF.md §2.1). The order does not matter, since
integers are added.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from blindmerge.manifest import Group
from blindmerge.privacy.mechanism import NoiseTerms, PrivateGrams
from blindmerge.statistic import Array
from blindmerge_client.batches import Batch
from blindmerge_client.collect.inputs import Seen, watched
from blindmerge_client.collect.whitening import Whitening
from blindmerge_client.progress import Watch, unwatched

__all__ = ["Units", "collect_private_grams", "examples_alone", "units_of"]

Units = tuple[tuple[int, ...], ...]
"""Numbers of the examples of each unit."""


def units_of(examples: int, persons: Sequence[str] | None, unit_examples: int) -> Units:
    """The units of a data set.

    persons: of each example; None if a unit is an example. Of a person count the first
    `unit_examples` examples.
    """
    if persons is None:
        return tuple((number,) for number in range(examples))
    found: dict[str, list[int]] = {}
    for number, person in enumerate(persons):
        found.setdefault(person, []).append(number)
    return tuple(tuple(numbers[:unit_examples]) for numbers in found.values())


def collect_private_grams(
    model: PreTrainedModel,
    groups: Sequence[Group],
    alone: Sequence[Batch],
    units: Units,
    whitening: Whitening,
    terms: NoiseTerms,
    watch: Watch = unwatched,
) -> PrivateGrams:
    """The clipped sums over all units; they are private until they are released with noise.

    groups: those of `terms`.   alone: each example by itself, by number.
    watch: shows how many units are done.
    """
    grams = PrivateGrams(terms)
    matrices = {group.name: whitening.matrix(group.name) for group in groups}
    for parts in examples_alone(model, groups, alone, watch(units)):
        grams.add({name: rows @ matrices[name] for name, rows in parts.items()})
    return grams


@torch.inference_mode()
def examples_alone(
    model: PreTrainedModel,
    groups: Sequence[Group],
    alone: Sequence[Batch],
    units: Iterable[tuple[int, ...]],
) -> Iterator[dict[str, Array]]:
    """X~ of every group, of one unit after another, its examples stacked."""
    by_number, by_name = {b.indices[0]: b for b in alone}, {g.name: g for g in groups}
    with watched(model, groups) as inputs:
        for unit in units:
            examples = []
            for number in unit:
                batch = by_number[number]
                model(**batch.inputs)
                examples.append(inputs.rows(batch))
            yield {
                name: np.vstack([_extended(group, seen[name]) for seen in examples])
                for name, group in by_name.items()
            }


def _extended(group: Group, seen: Seen) -> Array:
    """The rows of an example, with ones for a bias."""
    (part,) = seen.parts
    extended = np.empty((len(part.rows), group.width))
    extended[:, : group.inputs] = part.rows.double().cpu().numpy()
    extended[:, group.inputs :] = 1.0
    return extended
