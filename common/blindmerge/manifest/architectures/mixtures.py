"""Mixtures of experts with Llama's attention: Mixtral, and Qwen 2 and 3 MoE.

The layers of an expert see the tokens that the router sends to it. An expert with few of them
at an owner is averaged, as every layer with few rows is. Qwen 2 has an expert beside them that
sees every token; some layers of a Qwen have one such network and no experts.
"""

from dataclasses import replace

from blindmerge.manifest.architectures.llama import ATTENTION, LLAMA, NORMS
from blindmerge.manifest.rules import Experts, GroupRule, Part, tokens

__all__ = ["MIXTRAL", "QWEN_MOE"]

MIXTRAL = replace(
    LLAMA,
    layers=(
        Part(
            "model.layers",
            (
                *ATTENTION,
                # As files have it, and as the module does.
                GroupRule(
                    "block_sparse_moe.gate",
                    "tokens",
                    ("block_sparse_moe.gate",),
                    optional=True,
                    module="mlp.gate",
                ),
                tokens("mlp.gate", optional=True),
            ),
            NORMS,
            Experts("block_sparse_moe.experts", ("w1", "w3", "w2"), "mlp.experts"),
        ),
    ),
)
QWEN_MOE = replace(
    LLAMA,
    layers=(
        Part(
            "model.layers",
            (
                *ATTENTION,
                tokens("mlp", "mlp.gate_proj", "mlp.up_proj", optional=True),
                tokens(
                    "mlp.gate",
                    "mlp.gate",
                    "mlp.shared_expert.gate_proj",
                    "mlp.shared_expert.up_proj",
                    "mlp.shared_expert_gate",
                    optional=True,
                ),
            ),
            NORMS,
            Experts("mlp.experts", ("gate_proj", "up_proj", "down_proj"), "mlp.experts"),
            (
                tokens("mlp.shared_expert.down_proj", optional=True, parallel=True),
                tokens("mlp.down_proj", optional=True),
            ),
        ),
    ),
)
