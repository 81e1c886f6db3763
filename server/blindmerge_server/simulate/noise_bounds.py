"""Public bounds of arrays with noise, which no sample of a made-up owner has.

A noised Gram matrix is, before whitening is taken off, the sum of at most `examples` matrices
of norm C / a, of noise whose largest eigenvalue is about sigma sqrt(2 width), and of a ridge.
"""

import math

from blindmerge.encoding import ArrayLayout, Layout, Scale, exponent_for, largest_scaled_log2
from blindmerge.manifest import Block, Group
from blindmerge.plan import Plan
from blindmerge.privacy.mechanism import NoiseTerms
from blindmerge.privacy.terms import public_rows
from blindmerge_client.collect.whitening import Whitening

__all__ = ["with_noise"]

_EDGES = 4.0  # of the noise; beyond two, chances are below 10^-100
_CHANGE_BITS = 6  # by which an owner's change of weights may exceed the sample's
_MARGIN = 16.0  # an owner's whitening may differ a little: another version of its texts


def with_noise(
    layout: Layout,
    margin_bits: int,
    plan: Plan,
    block: Block,
    terms: NoiseTerms,
    whitening: Whitening,
) -> Layout:
    """The layout of a block in which Gram matrices and moments have bounds for noise as well.

    margin_bits: of the layout, above its sample.
    """
    arrays = {array.name: array for array in layout.arrays}
    largest = largest_scaled_log2(layout.owners, layout.bits)
    for group in block.groups:
        if group.name not in terms.groups:
            continue
        norm = _largest_eigenvalue(plan, group, terms, whitening)
        arrays[f"{group.name}:gram"] = _bounded(layout, arrays[f"{group.name}:gram"], norm)
        for layer in group.layers:
            # |(G D)_ij| <= ||G|| sqrt(width) max |D|.
            log2 = largest - margin_bits - min(arrays[f"{layer.name}:delta"].scale.exponents)
            change = 2.0 ** (log2 + _CHANGE_BITS)
            moment = norm * math.sqrt(group.width) * change
            name = f"{layer.name}:moment"
            arrays[name] = _bounded(layout, arrays[name], moment)
    return layout.model_copy(update={"arrays": tuple(arrays[a.name] for a in layout.arrays)})


def _largest_eigenvalue(plan: Plan, group: Group, terms: NoiseTerms, whitening: Whitening) -> float:
    """A bound of it, of what one owner sends."""
    edge = terms.noise_std(group.name) * math.sqrt(2 * group.width)
    signal = plan.examples * terms.clip / terms.groups[group.name].weight
    # Of a symmetric matrix no eigenvalue is larger than a sum of magnitudes in a row.
    inverse = float(abs(whitening.inverse(group.name)).sum(axis=1).max())
    rows = public_rows(group, plan.examples, plan.max_length)
    return _MARGIN * inverse**2 * (signal + _EDGES * edge + terms.ridge(group.name, 1)) / rows


def _bounded(layout: Layout, array: ArrayLayout, bound: float) -> ArrayLayout:
    exponent = exponent_for(math.ceil(math.log2(bound)), layout.owners, layout.bits)
    scale = Scale(kind="uniform", exponents=(exponent,))
    return ArrayLayout(name=array.name, shape=array.shape, scale=scale)
