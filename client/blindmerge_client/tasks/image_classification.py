"""One label for every image: `image`, the path of a file, and `label`, one of the job's names.

Paths are relative to the folder of the file with the rows. JPEG, PNG and WebP are read.
"""

from collections.abc import Mapping
from dataclasses import replace

from blindmerge.errors import DataInvalid
from blindmerge_client.tasks.rules import (
    Form,
    Head,
    Image,
    Label,
    Row,
    Text,
    checked_label,
    checked_text,
)
from blindmerge_client.tasks.single_label import SINGLE_LABEL

__all__ = ["IMAGE_CLASSIFICATION"]


def _read(fields: Row, index: Mapping[str, int], where: str) -> tuple[Image, int]:
    path = checked_text(fields["image"], "image", where)
    if not path.strip() or "\0" in path:
        raise DataInvalid(f"{where}: the image is no path", hint="give the path of a file")
    return Image(path), checked_label(fields["label"], "label", index, where)


def _fits(text: Text, label: Label, labels: int) -> bool:
    return isinstance(text, Image) and type(label) is int and 0 <= label < labels


IMAGE_CLASSIFICATION = replace(
    SINGLE_LABEL,
    form=Form(("image", "label"), '{"image": "a/b.png", "label": "..."}', _read),
    head=Head(
        auto="AutoModelForImageClassification",
        classes="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        config={"problem_type": "single_label_classification"},
    ),
    fits=_fits,
)
