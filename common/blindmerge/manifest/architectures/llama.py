"""Llama, and what has its layers: Mistral, Qwen 2 and 3, and Gemma, which has more norms."""

from blindmerge.manifest.rules import TEXTS, Architecture, Part, last_tokens, tokens

__all__ = ["LLAMA"]

LLAMA = Architecture(
    tasks=TEXTS,
    first=Part("model", mean=r"(embed_tokens|norm)\.weight"),
    layers=(
        Part(
            "model.layers",
            (
                tokens("self_attn", *(f"self_attn.{part}_proj" for part in "qkv")),
                tokens("self_attn.o_proj"),
                tokens("mlp", "mlp.gate_proj", "mlp.up_proj"),
                tokens("mlp.down_proj"),
            ),
            r"((input|post_attention|(pre|post)_feedforward)_layernorm|self_attn\.[qk]_norm)\.weight",
        ),
    ),
    head=Part("", last_tokens("score")),
)
