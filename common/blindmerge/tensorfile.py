"""Tensors in safetensors files: names, dtypes and shapes from the header, numbers one by one.

Numbers are float16, bfloat16, float32 or float64. What else such a file can hold is either a
table of positions, which follows from the model's code and is passed over, or quantised weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from blindmerge.errors import CheckpointInvalid

__all__ = ["DTYPES", "Stored", "is_weight", "read_header", "read_tensor"]

DTYPES: Mapping[str, npt.DTypeLike] = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
"""The dtypes of weights, by their names in the format."""

# Old checkpoints have it as a tensor; transformers makes it anew.
_POSITIONS = "position_ids"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file.   dtype: its name in the format, a key of `DTYPES`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def is_weight(name: str) -> bool:
    """Whether a tensor is one to merge, by its name."""
    return name.rpartition(".")[2] != _POSITIONS


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a file by name, without tables of positions.

    Raises CheckpointInvalid if the file is damaged, or a tensor is not of floating point.
    """
    try:
        with safe_open(file, framework="numpy") as stream:
            found = {name: _stored(file, name, stream) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"'{file}' is not a readable safetensors file",
            hint="it may be incomplete: copy it again",
        ) from error
    weights = {name: stored for name, stored in found.items() if is_weight(name)}
    for name in sorted(weights):
        if (dtype := weights[name].dtype) not in DTYPES:
            raise CheckpointInvalid(
                f"tensor '{name}' in '{file}' is {dtype}, which no rule can merge",
                hint="quantised weights cannot be merged: save the model in one of "
                f"{', '.join(sorted(DTYPES))}",
            )
    return weights


def _stored(file: Path, name: str, stream: Any) -> Stored:
    part = stream.get_slice(name)
    return Stored(file, part.get_dtype(), tuple(part.get_shape()))


def read_tensor(stored: Stored, name: str) -> npt.NDArray[Any]:
    """The numbers of a tensor, in the dtype of the file."""
    with safe_open(stored.file, framework="numpy") as stream:
        array: npt.NDArray[Any] = stream.get_tensor(name)
    return array
