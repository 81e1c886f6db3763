"""Pico image classifiers and images: width 16, two layers, patches of 4 x 4 in 8 x 8 pixels.

folder = pico_vision(tmp_path / "base", "vit", labels=("dark", "bright"))
examples = pico_images(tmp_path / "images", 20)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import PIL.Image
import torch
import transformers

from blindmerge_client.data import Examples
from blindmerge_client.images import found_image
from blindmerge_client.models import quiet
from blindmerge_client.tasks import Image

__all__ = ["SHADES", "Vision", "pico_images", "pico_vision"]

Vision: TypeAlias = Literal["vit", "clip"]
SHADES = ("dark", "bright")

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def _config(kind: Vision, labels: Sequence[str]) -> Any:
    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    if kind == "vit":
        return transformers.ViTConfig(**_SIZES, **names, initializer_range=0.25)
    text: dict[str, Any] = {**_SIZES, "num_hidden_layers": 1, "vocab_size": 30}
    del text["image_size"], text["patch_size"]
    return transformers.CLIPConfig(
        vision_config={**_SIZES, "initializer_range": 0.25, "initializer_factor": 4.0},
        text_config=text,
        initializer_factor=4.0,
        **names,
    )


def pico_vision(folder: Path, kind: Vision, labels: Sequence[str] = SHADES, seed: int = 0) -> Path:
    """Writes a pico image classifier with its image processor into `folder`; returns `folder`."""
    auto: Any = transformers.AutoModelForImageClassification
    processor: Any = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(_config(kind, labels))
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def pico_images(folder: Path, count: int, seed: int = 0) -> Examples:
    """Images of noise in files of `folder`; label 1 is brighter than label 0."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for number in range(count):
        label = int(rng.integers(2))
        pixels = rng.integers(0, 160, (10, 12, 3), dtype=np.uint8) + np.uint8(90 * label)
        path = folder / f"{seed}-{number}.png"
        PIL.Image.fromarray(pixels).save(path)
        images.append(found_image(Image(str(path)), folder, "a pico image"))
        labels.append(label)
    return Examples(tuple(images), tuple(labels))
