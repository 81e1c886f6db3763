"""Public bounds for a plan's secure sums, from a made-up owner.

The ring needs exponents that everybody may know (secagg/SPEC.md §4). They are those of an owner
that has no data: its model is the base with noise on every tensor, its texts are random words
of the tokenizer. What such an owner would send, times a margin, bounds what a real one sends.

How large a margin: the demo's owners send changes of weights at most 2^4 times those of the
made-up owner, moments 2^8 times, and diagonals of Gram matrices 2^9 times, row by row, but for
rows that are faint in the made-up owner. Fisher
information varies more, up to 2^20 for a row, since a trained head and real words give other
gradients; but by 2^11 at most beyond the largest of its block, so that is what bounds it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers

from blindmerge import canonical
from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.encoding import Bits, Layout, calibrate
from blindmerge.errors import PeerInvalid
from blindmerge.files import replacing
from blindmerge.merge import Evidence
from blindmerge.plan import Plan
from blindmerge.privacy.terms import gram_groups
from blindmerge.statistic import Array, Statistic
from blindmerge_client.collect.whitening import Whitening
from blindmerge_client.images import found_image
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.session import Session
from blindmerge_client.tasks import Image, Pair, Text
from blindmerge_server.simulate.noise_bounds import with_noise

__all__ = ["Layouts", "cached_layouts", "public_layouts"]

Layouts = tuple[tuple[Layout, ...], ...]
"""For each sum of a plan, the layout of each of its parts."""

_RULE = 4  # rises when the same plan gets other bounds
_TEXTS = 16
_MOST_TOKENS = 128  # of a made-up text
_MOVE = 1 / 8  # of a tensor's root mean square: more than fine-tuning moves it
_MOVE_OF_ZERO = 1 / 64  # of tensors that are zero in the base, such as a new head's bias
_MARGIN_BITS: Mapping[Bits, int] = {32: 12, 48: 12, 64: 16}
"""By how many bits owners may exceed the sample; bits that are left over are precision."""
_SPARED_BITS: Mapping[Bits, int] = {32: 4, 48: 4, 64: 0}
"""By how many fewer in changes of weights."""

_BLOCK_ELEMENTS = 1 << 21  # 16 MiB in 64 bits


def cached_layouts(plan: Plan, base: Path, cache: Path) -> Layouts:
    """`public_layouts`, made once for each model, method and number of owners."""
    if plan.masks == "off":
        raise PeerInvalid("a plan without masks has no layouts")
    content = [
        _RULE,
        plan.base,
        plan.method.model_dump(),
        plan.noise if plan.noise == "off" else plan.noise.model_dump(),
        [plan.task, plan.examples, plan.max_length, plan.masks.bits, plan.masks.thresholds.owners],
        [str(torch.__version__), transformers.__version__],
    ]
    file = cache / f"{hashlib.sha256(canonical.encode(content)).hexdigest()}.cbor"
    if not file.exists():
        layouts = public_layouts(plan, base)
        dumped = [[part.model_dump() for part in parts] for parts in layouts]
        with replacing(file) as temporary:
            temporary.write_bytes(canonical.encode(dumped))
    value: Any = canonical.tuples(canonical.decode(file.read_bytes()))
    return tuple(tuple(Layout.model_validate(part) for part in parts) for parts in value)


def public_layouts(plan: Plan, base: Path) -> Layouts:
    """The layouts of a plan with masks.   base: the checkpoint that the plan names.

    Raises PeerInvalid if the plan has no masks or is for another base.
    """
    if plan.masks == "off":
        raise PeerInvalid("a plan without masks has no layouts")
    sampled = plan.model_copy(update={"method": plan.method.for_sample(), "noise": "off"})
    bits, owners = plan.masks.bits, plan.masks.thresholds.owners
    margin_bits, spared_bits, floor_bits = _MARGIN_BITS[bits], _SPARED_BITS[bits], 8
    if Evidence.FISHER in plan.method.needs:
        margin_bits, spared_bits, floor_bits = 15, 0, 0
    rng = np.random.default_rng(0)  # public, and the same everywhere
    layouts = []
    with TemporaryDirectory(prefix="blindmerge-bounds-") as folder:
        checkpoint = Checkpoint(base)
        own = _moved(checkpoint, Path(folder) / "own", rng)
        texts = _texts(plan, base, rng, Path(folder))
        session = Session(sampled, base, own, texts, Path(folder) / "session")
        for blocks in plan.phases:
            layouts.append(
                tuple(
                    calibrate(
                        _typical(session.contribute(block), plan, spared_bits),
                        margin_bits=margin_bits,
                        floor_bits=floor_bits,
                        owners=owners,
                        bits=bits,
                        block_elements=_BLOCK_ELEMENTS,
                    )
                    for block in blocks
                )
            )
            if plan.method.progressive:
                for block in blocks:
                    session.receive(checkpoint.read(plan.blocks[block].shapes))
    return _with_noise(plan, base, tuple(layouts), margin_bits - spared_bits)


def _with_noise(plan: Plan, base: Path, layouts: Layouts, margin_bits: int) -> Layouts:
    if plan.noise == "off" or plan.noise.grams is None:
        return layouts
    terms = plan.noise.terms(plan.manifest, plan.max_length)
    groups = [group for group in gram_groups(plan.manifest) if group.name in terms.groups]
    with TemporaryDirectory(prefix="blindmerge-bounds-") as folder:
        whitening = Whitening.make(
            load_model(base), load_tokenizer(base), groups, plan.max_length, Path(folder) / "w"
        )
        return tuple(
            tuple(
                with_noise(part, margin_bits, plan, plan.blocks[block], terms, whitening)
                for block, part in zip(blocks, parts, strict=True)
            )
            for blocks, parts in zip(plan.phases, layouts, strict=True)
        )


def _image(path: Path, rng: np.random.Generator) -> Text:
    # Coarse noise: what is as fine as a pixel is lost where images are made smaller.
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(coarse).resize((64, 64), PIL.Image.Resampling.NEAREST).save(path)
    return found_image(Image(str(path)), path.parent, "a made-up image")


def _typical(sample: Statistic, plan: Plan, spared_bits: int) -> Statistic:
    """The made-up owner's statistic as it would be of as many tokens as the plan allows.

    Counts grow with them, and so does whatever is not divided by them, but nothing else.
    spared_bits: of the margin, which changes of weights do not need.
    """
    times = plan.examples * plan.max_length / (_TEXTS * min(plan.max_length, _MOST_TOKENS))
    divided = getattr(plan.method, "weighting", "equal") == "equal"
    arrays = {}
    for name, array in sample.arrays.items():
        kind = name.rpartition(":")[2]
        factor = 1.0 if divided and kind != "rows" else max(1.0, times)
        if kind == "delta":
            factor *= 2.0**-spared_bits
        arrays[name] = factor * array
    return Statistic(sample.schema, arrays)


def _moved(base: Checkpoint, folder: Path, rng: np.random.Generator) -> Path:
    """The base with noise, as if it were fine-tuned."""
    writer = CheckpointWriter(folder, base)
    for number, block in enumerate(base.manifest.blocks):
        tensors = base.read(block.shapes)
        writer.write(number, {name: each + _noise(each, rng) for name, each in tensors.items()})
    writer.finish()
    return folder


def _noise(tensor: Array, rng: np.random.Generator) -> Array:
    size = float(np.sqrt(np.mean(tensor * tensor)))
    return (_MOVE * size or _MOVE_OF_ZERO) * rng.standard_normal(tensor.shape)


def _texts(plan: Plan, base: Path, rng: np.random.Generator, folder: Path) -> Sequence[Text]:
    """Random words, as many tokens as the plan allows or a few more; or images of noise."""
    if plan.task == "image-classification":
        return [_image(folder / f"{number}.png", rng) for number in range(_TEXTS)]
    tokenizer: Any = load_tokenizer(base)
    special = set(tokenizer.all_special_ids)
    ids = np.array([token for token in range(len(tokenizer)) if token not in special])
    drawn = rng.choice(ids, (_TEXTS, min(plan.max_length, _MOST_TOKENS)))
    words = [tokenizer.decode(row.tolist()).split() for row in drawn]
    if plan.task == "token-classification":
        return [tuple(row) for row in words]
    texts = [" ".join(row) for row in words]
    return [Pair(text, text) for text in texts] if plan.task == "seq2seq" else texts
