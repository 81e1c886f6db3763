"""Images of an owner: looked at before any work, decoded within bounds when a model needs them."""

import hashlib
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps

from blindmerge.errors import DataInvalid
from blindmerge_client.tasks import Image

__all__ = ["decoded", "found_image"]

_FILE_BYTES = 1 << 26
_PIXELS = 1 << 26  # decoded, 192 MiB
# Each format is a decoder that reads what somebody made: few, and those in use.
_FORMATS = ("JPEG", "PNG", "WEBP")


def found_image(image: Image, folder: Path, where: str) -> Image:
    """The image with its path made absolute and its hash, after it was decoded once.

    folder: what a relative path starts from.   where: for errors.
    Raises DataInvalid, which names the row, if there is no such image or it is too large.
    """
    path = folder / image.path
    data = _read(path, where)
    _decode(data, where)
    return Image(str(path), hashlib.sha256(data).hexdigest())


def decoded(image: Image) -> Any:
    """The image in RGB, upright, as Pillow has it.

    Raises DataInvalid if the file is another than the one that was looked at.
    """
    where = f"'{image.path}'"
    data = _read(Path(image.path), where)
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise DataInvalid(f"{where} has changed since the examples were read")
    return PIL.ImageOps.exif_transpose(_decode(data, where)).convert("RGB")


def _read(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
    except FileNotFoundError:
        raise DataInvalid(f"{where}: there is no such image file", hint="check the path") from None
    except OSError as error:
        raise DataInvalid(f"{where}: the image cannot be read: {error.strerror}") from None
    if len(data) > _FILE_BYTES:
        raise DataInvalid(f"{where}: the image file is larger than {_FILE_BYTES >> 20} MiB")
    return data


def _decode(data: bytes, where: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(BytesIO(data), formats=_FORMATS)
            if picture.width * picture.height <= _PIXELS:
                picture.load()
                return picture
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        pass
    except Exception:  # decoders raise whatever they like about broken files
        # `from None`: the cause may carry bytes of the image.
        raise DataInvalid(
            f"{where}: the image is not an intact {', '.join(_FORMATS)}", hint="save it again"
        ) from None
    raise DataInvalid(
        f"{where}: the image has more than {_PIXELS:,} pixels", hint="make it smaller"
    )
