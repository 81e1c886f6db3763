"""A federation of image classifiers, as a person runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForImageClassification

from blindmerge_client.data import read_examples
from blindmerge_client.predict import predict
from support.command import blindmerge
from support.pico_vision import SHADES, pico_images, pico_vision

FEDERATION = """[job]
name = "shades"
base = "model"
task = "image-classification"
labels = ["dark", "bright"]
method = { name = "regmean", rows_factor = 1.0 }
compare = ["average"]
[training]
epochs = 2
learning_rate = 5e-3
"""


def test_image_classifiers_are_merged_under_masks(tmp_path: Path) -> None:
    pico_vision(tmp_path / "model", "vit")
    lines = [FEDERATION]
    for number, owner in enumerate(("alpha", "beta", "gamma")):
        lines.append(f'[[owner]]\nname = "{owner}"')
        for place, (split, size) in enumerate((("train", 48), ("validation", 8), ("test", 16))):
            folder = tmp_path / owner / split
            examples = pico_images(folder, size, 10 * number + place)
            pairs = zip(examples.texts, examples.labels, strict=True)
            rows = [
                {"image": f"{split}/{Path(image[0]).name}", "label": SHADES[label]}
                for image, label in pairs
                if isinstance(label, int)
            ]
            file = tmp_path / owner / f"{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines.append(f'{split} = "{owner}/{split}.jsonl"')
    (tmp_path / "federation.toml").write_text("\n".join(lines))
    process = blindmerge(
        "simulate", "federation.toml", "--out", "out", cwd=tmp_path, cache=tmp_path / "cache"
    )
    assert process.returncode == 0, process.stderr
    merged = tmp_path / "out" / "merged"
    _, loading = AutoModelForImageClassification.from_pretrained(merged, output_loading_info=True)
    assert not any(loading.values()), loading
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {layer["fallback"] for layer in report["layers"]["regmean"]} == {None}
    (row,) = (each for each in report["scores"] if each["system"] == "regmean")
    for score in row["scores"]:
        test = read_examples(
            tmp_path / score["data"] / "test.jsonl", SHADES, "image-classification"
        )
        found = predict(merged, test.texts, 16).argmax(axis=1)
        right = float(np.mean(found == np.array(test.labels)))
        assert score["metrics"]["accuracy"] == pytest.approx(right, rel=1e-15)
