"""Public matrices that bring inputs of layers to about the same size in all directions.

Noise on a Gram matrix is the same in every direction, and inputs are not: a few directions are a
thousand times as strong as most. Let H be the Gram matrix of the *base* model on public texts,
over its rows, and t the mean of its diagonal. Inputs are multiplied by

    P = (H + tau t I)^(-1/2)

before they are clipped and get noise, and P is taken off again afterwards (PROOF.md §2.4, §7.4).
Nothing private is in P: any matrix would do, and this one makes the noise a small one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import eigh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from blindmerge.files import replacing, save_array
from blindmerge.manifest import Group
from blindmerge.statistic import Array
from blindmerge_client.batches import batches
from blindmerge_client.collect.inputs import watched
from blindmerge_client.collect.moments import Gram
from blindmerge_client.collect.public_texts import public_texts

__all__ = ["Whitening"]

_TEXTS = 256
_BATCH = 16
_TAU = 0.3


class Whitening:
    """P and its inverse, by group, in files: a layer's is read when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def make(
        cls,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        groups: Sequence[Group],
        max_length: int,
        folder: Path,
    ) -> "Whitening":
        """Of the inputs of `groups` in the base model; an existing `folder` is whole and stays.

        max_length: tokens after which a text is cut.
        """
        if not folder.is_dir():
            with replacing(folder) as temporary:
                temporary.mkdir(mode=0o700)
                moments = _moments(base, tokenizer, groups, max_length)
                for group in groups:
                    save_array(temporary / f"{group.name}.npy", _roots(moments[group.name]))
        return cls(folder)

    def matrix(self, group: str) -> Array:
        """P [width, width], symmetric."""
        return np.asarray(self._both(group)[0])

    def inverse(self, group: str) -> Array:
        """P^-1 [width, width], symmetric."""
        return np.asarray(self._both(group)[1])

    def _both(self, group: str) -> Array:
        both: Array = np.load(self._folder / f"{group}.npy", mmap_mode="r")
        return both


def _moments(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    max_length: int,
) -> dict[str, Array]:
    """The mean of x x^T over the rows of each group."""
    rng = np.random.default_rng(0)  # public, and the same everywhere
    texts = public_texts(_TEXTS, rng)
    grams = {group.name: Gram(group, "float64", torch.device("cpu")) for group in groups}
    with torch.inference_mode(), watched(base, groups) as inputs:
        for batch in batches(tokenizer, texts, max_length, _BATCH):
            base(**batch.inputs)
            for name, seen in inputs.rows(batch).items():
                grams[name].add(seen)
    return {name: gram.total() / gram.count for name, gram in grams.items()}


def _roots(moment: Array) -> Array:
    """P and P^-1, [2, width, width]."""
    shift = _TAU * float(np.mean(np.diagonal(moment)))
    values, vectors = eigh(moment)
    roots = np.sqrt(np.maximum(values, 0.0) + shift)
    return np.stack([(vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T])
