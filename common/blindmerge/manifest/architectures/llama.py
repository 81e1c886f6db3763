"""Llama, and what has its layers: Mistral, Qwen 2 and 3, and Gemma, which has more norms."""

from blindmerge.manifest.rules import TEXTS, Architecture, Part, last_tokens, tokens

__all__ = ["ATTENTION", "LLAMA", "NORMS"]

ATTENTION = (
    tokens("self_attn", *(f"self_attn.{part}_proj" for part in "qkv")),
    tokens("self_attn.o_proj"),
)
NORMS = r"((input|post_attention|(pre|post)_feedforward)_layernorm|self_attn\.[qk]_norm)\.weight"

LLAMA = Architecture(
    tasks=TEXTS,
    first=Part("model", mean=r"(embed_tokens|norm)\.weight"),
    layers=(
        Part(
            "model.layers",
            (
                *ATTENTION,
                tokens("mlp", "mlp.gate_proj", "mlp.up_proj"),
                tokens("mlp.down_proj"),
            ),
            NORMS,
        ),
    ),
    head=Part("", last_tokens("score")),
)
