"""What a transformer layer returns, on disk: hidden states alone, or a tuple that has them.

A file holds the tensors of a tuple under their places in it; what is not there was None.
"""

from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save

from blindmerge.errors import CheckpointInvalid

__all__ = ["States", "load_states", "save_states"]

States: TypeAlias = torch.Tensor | tuple[torch.Tensor | None, ...]
"""The output of a layer, whose code says what stands where in a tuple."""


def save_states(path: Path, states: States) -> None:
    """Writes the output of a layer into the new file `path`.

    Raises CheckpointInvalid if it is neither a tensor nor a tuple of tensors and None.
    """
    alone = not isinstance(states, tuple)
    parts = (states,) if alone else states
    for part in parts:
        if not (isinstance(part, torch.Tensor) or (part is None and not alone)):
            raise CheckpointInvalid(f"a layer returns a {type(part).__name__}, not tensors")
    tensors = {str(n): part.contiguous() for n, part in enumerate(parts) if part is not None}
    form = "tensor" if alone else str(len(parts))
    # Not save_file: it does not say why it fails, e.g. that the disk is full.
    path.write_bytes(save(tensors, metadata={"form": form}))


def load_states(path: Path, device: torch.device) -> States:
    """What `save_states` wrote."""
    with safe_open(path, framework="pt") as file:
        form = file.metadata()["form"]
        # Copies, since products of vectors that are not aligned are rounded in another order.
        tensors: dict[str, torch.Tensor] = {
            name: file.get_tensor(name).clone().to(device)
            for name in file.keys()  # noqa: SIM118
        }
    if form == "tensor":
        return tensors["0"]
    return tuple(tensors.get(str(n)) for n in range(int(form)))
