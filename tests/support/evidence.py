"""Evidence of several owners, made from actual inputs: no transformers, no torch.

    block = small_block()
    owners = make_owners(block, np.random.default_rng(0), count=3)
    total = summed(method, block, owners)

An `Owner` keeps the rows that its Gram matrices were summed over, so that a test can compute
the same result from the rows. All arrays are read-only: a method that writes into its
evidence fails.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np

from blindmerge.manifest import Block, Group, Linear, Mean
from blindmerge.merge import (
    BlockEvidence,
    CrossGramEvidence,
    GramEvidence,
    MergeMethod,
    Weights,
)
from blindmerge.statistic import Array, Statistic

__all__ = [
    "Owner",
    "at_home",
    "bert_shapes",
    "make_owner",
    "make_owners",
    "small_block",
    "stacked",
    "summed",
    "with_inputs",
]


@dataclass(frozen=True)
class Owner:
    """An owner's evidence and the rows behind it.

    inputs: by group name, [rows, width], with a last column of ones if the group has biases.
    merged_inputs: what the same rows are in the model merged so far.
    """

    evidence: BlockEvidence
    inputs: Mapping[str, Array]
    merged_inputs: Mapping[str, Array]


def small_block() -> Block:
    """Three layers with a common input and biases, one without a bias, one of the head."""
    return Block(
        name="block",
        module="block",
        groups=(
            Group(
                name="attention",
                inputs=5,
                rows="tokens",
                layers=tuple(
                    Linear(name=f"attention.{part}", outputs=outputs, bias=True)
                    for part, outputs in (("query", 4), ("key", 4), ("value", 3))
                ),
            ),
            Group(
                name="dense",
                inputs=4,
                rows="tokens",
                layers=(Linear(name="dense", outputs=6, bias=False),),
            ),
            Group(
                name="classifier",
                inputs=3,
                rows="sequences",
                layers=(Linear(name="classifier", outputs=2, bias=True),),
            ),
        ),
        means=(Mean(name="words.weight", shape=(7, 3)), Mean(name="LayerNorm.bias", shape=(5,))),
    )


def make_owners(
    block: Block, rng: np.random.Generator, count: int, rows: int = 60
) -> tuple[Owner, ...]:
    """`count` owners with a common base, different weights and different inputs.

    rows: of the first owner's token groups; every further owner has seven more.
    """
    base = _read_only({name: _away_from_zero(rng, shape) for name, shape in block.shapes.items()})
    return tuple(make_owner(block, rng, base, rows + 7 * number) for number in range(count))


def make_owner(block: Block, rng: np.random.Generator, base: Weights, rows: int) -> Owner:
    """An owner whose weights are float32 numbers within 0.1 of `base`."""
    own = {
        name: (base[name] + rng.uniform(-0.1, 0.1, shape)).astype(np.float32).astype(np.float64)
        for name, shape in block.shapes.items()
    }
    fishers = {
        # The mean of squared gradients of eight examples.
        name: np.mean(rng.standard_normal((8, *shape)) ** 2, axis=0)
        for name, shape in block.shapes.items()
    }
    evidence = BlockEvidence(
        base=base, own=_read_only(own), tokens=rows, fishers=_read_only(fishers)
    )
    inputs = {group.name: _inputs(rng, group, rows) for group in block.groups}
    (noise,) = rng.spawn(1)
    merged = {group.name: _disturbed(noise, group, inputs[group.name]) for group in block.groups}
    return with_inputs(block, Owner(evidence, {}, {}), inputs, merged)


def with_inputs(
    block: Block,
    owner: Owner,
    inputs: Mapping[str, Array],
    merged_inputs: Mapping[str, Array] | None = None,
) -> Owner:
    """`owner` with the moments of these rows; merged_inputs: `inputs` if left out."""
    merged = inputs if merged_inputs is None else merged_inputs
    grams, cross_grams, merged_grams = {}, {}, {}
    for name in (group.name for group in block.groups):
        x, y = merged[name], inputs[name]
        half = len(x) // 2
        grams[name] = _gram(y, _gram(y[:half]))
        merged_grams[name] = _gram(x, _gram(x[:half]))
        cross_grams[name] = _cross_gram(x, y, _cross_gram(x[:half], y[:half]))
    evidence = replace(
        owner.evidence, grams=grams, cross_grams=cross_grams, merged_grams=merged_grams
    )
    return Owner(evidence, _read_only(inputs), _read_only(merged))


def _gram(rows: Array, half: GramEvidence | None = None) -> GramEvidence:
    return GramEvidence(_frozen(rows.T @ rows), len(rows), half)


def _cross_gram(x: Array, y: Array, half: CrossGramEvidence | None = None) -> CrossGramEvidence:
    return CrossGramEvidence(_frozen(x.T @ x), _frozen(x.T @ y), len(x), half)


def at_home(block: Block, owner: Owner) -> Owner:
    """`owner` in a job where the model merged so far computes just what its own does."""
    return with_inputs(block, owner, owner.inputs)


def summed(method: MergeMethod, block: Block, owners: Sequence[Owner]) -> Statistic:
    """The sum of the owners' contributions, in their order."""
    return reduce(add, (method.contribution(block, owner.evidence) for owner in owners))


def stacked(layer: Linear, weights: Weights) -> Array:
    """[width, outputs]: the transposed weight of a layer, then its bias as one more row."""
    inputs = 0 if layer.layout == "inputs-first" else 1
    rows = list(np.moveaxis(weights[f"{layer.name}.weight"], inputs, 0))
    return np.array([*rows, weights[f"{layer.name}.bias"]] if layer.bias else rows)


def bert_shapes(
    layers: int = 2, width: int = 8, inner: int = 12, labels: int = 3
) -> dict[str, tuple[int, ...]]:
    """The tensors of a small BertForSequenceClassification, written out by hand."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for kind, count in (("word", 30), ("position", 16), ("token_type", 2)):
        shapes[f"bert.embeddings.{kind}_embeddings.weight"] = (count, width)
    norm("bert.embeddings.LayerNorm")
    for number in range(layers):
        path = f"bert.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{path}.attention.self.{part}", width, width)
        linear(f"{path}.attention.output.dense", width, width)
        norm(f"{path}.attention.output.LayerNorm")
        linear(f"{path}.intermediate.dense", inner, width)
        linear(f"{path}.output.dense", width, inner)
        norm(f"{path}.output.LayerNorm")
    linear("bert.pooler.dense", width, width)
    linear("classifier", labels, width)
    return shapes


def _inputs(rng: np.random.Generator, group: Group, rows: int) -> Array:
    count = rows if group.rows == "tokens" else rows // 2
    # A square mixing matrix makes the features correlate, as activations do.
    features = rng.standard_normal((count, group.inputs)) @ rng.standard_normal(
        (group.inputs, group.inputs)
    )
    return np.hstack([features, np.ones((count, 1))]) if group.bias else features


def _disturbed(rng: np.random.Generator, group: Group, inputs: Array) -> Array:
    """`inputs` as a model would see them that differs in earlier layers; ones stay ones."""
    noise = 0.1 * rng.standard_normal((len(inputs), group.inputs))
    mixed = inputs[:, : group.inputs] @ (np.eye(group.inputs) + 0.05) + noise
    return np.hstack([mixed, np.ones((len(mixed), 1))]) if group.bias else mixed


def _away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Float32 numbers with a magnitude of 0.5 to 1."""
    signed = rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
    return np.asarray(signed.astype(np.float32).astype(np.float64))


def _frozen(array: Array) -> Array:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _read_only(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: _frozen(array) for name, array in arrays.items()}
