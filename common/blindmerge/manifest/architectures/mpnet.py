"""MPNet: BERT's layers, with a table of relative positions that all of them share."""

from blindmerge.manifest.rules import TEXTS, Architecture, Part, sequences, tokens

__all__ = ["MPNET"]

MPNET = Architecture(
    tasks=TEXTS,
    first=Part(
        "mpnet",
        mean=r"embeddings\.(\w+_embeddings\.weight|LayerNorm\.(weight|bias))"
        r"|encoder\.relative_attention_bias\.weight",
    ),
    layers=(
        Part(
            "mpnet.encoder.layer",
            (
                tokens("attention.attn", *(f"attention.attn.{part}" for part in "qkv")),
                tokens("attention.attn.o"),
                tokens("intermediate.dense"),
                tokens("output.dense"),
            ),
            r"(attention|output)\.LayerNorm\.(weight|bias)",
        ),
    ),
    head=Part("", sequences("classifier.dense", "classifier.out_proj")),
)
