"""What the experts of a mixture get: tokens that a router sends to them, and their activations.

transformers keeps all experts of a layer in one module with two stacked tensors, `gate_up_proj`
[experts, 2 inner, width] and `down_proj` [experts, width, inner], which is called with the tokens
and with the experts that the router chose for each. How it computes them differs from device to
device, and shows no input of a single expert. So tokens are taken from the call, and activations
are computed again from them, in float64.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from blindmerge.errors import CheckpointInvalid
from blindmerge.manifest import Group

__all__ = ["Routes", "chosen", "routed", "stacked_name"]

Routes: TypeAlias = Mapping[str, torch.Tensor]
"""By path of a mixture the numbers of the experts that each token goes to, [tokens, chosen]."""

_STACKED = ("gate_up_proj", "down_proj")
_LAYOUT = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}


def chosen(arguments: tuple[Any, ...]) -> torch.Tensor:
    """The experts of each token, [tokens, chosen], from the arguments of a mixture's call.

    Raises CheckpointInvalid if the module is called in another way.
    """
    if len(arguments) < 2 or not all(isinstance(each, torch.Tensor) for each in arguments[:2]):
        raise CheckpointInvalid("a mixture of experts is not called with tokens and their experts")
    tokens, experts = arguments[:2]
    if tokens.shape[:-1].numel() != experts.shape[:-1].numel() or experts.is_floating_point():
        raise CheckpointInvalid("a mixture of experts is not called with experts for each token")
    flat: torch.Tensor = experts.reshape(-1, experts.shape[-1])
    return flat


def routed(
    group: Group,
    mixture: nn.Module,
    tokens: torch.Tensor,
    experts: torch.Tensor,
    real: torch.Tensor,
) -> torch.Tensor:
    """The rows [n, inputs] of a group of one expert.

    tokens: all that the mixture is called with.   experts: of each, see `Routes`.
    real: which of them are no padding, [tokens].
    """
    flat = tokens.reshape(-1, tokens.shape[-1])
    if len(flat) != len(real) or len(experts) != len(real):
        raise CheckpointInvalid(
            f"the input of '{group.name}' has the shape {list(tokens.shape)}, "
            f"which does not fit {len(real)} tokens"
        )
    rows = flat[real & torch.eq(experts, group.expert or 0).any(dim=1)]
    return rows if group.rows == "routed-tokens" else _activations(group, mixture, rows)


def _activations(group: Group, mixture: Any, rows: torch.Tensor) -> torch.Tensor:
    layout = {name: getattr(mixture, name, None) for name in _LAYOUT}
    if layout != _LAYOUT or not hasattr(mixture, "_apply_gate"):
        raise CheckpointInvalid(
            f"the experts of '{group.name}' are laid out in a way that has no rule: "
            + ", ".join(f"{name} is {value}" for name, value in layout.items()),
        )
    with torch.inference_mode():
        gate_up = nn.functional.linear(rows.double(), mixture.gate_up_proj[group.expert].double())
        activations: torch.Tensor = mixture._apply_gate(gate_up)
    return activations


def stacked_name(group: Group) -> str:
    """What a mixture calls the tensor [experts, outputs, inputs] that has a group's layers."""
    return _STACKED[group.rows == "routed-activations"]
