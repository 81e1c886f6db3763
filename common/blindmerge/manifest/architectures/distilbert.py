"""DistilBERT: BERT without a pooler, with names of its own."""

from blindmerge.manifest.rules import TEXTS, Architecture, Part, sequences, tokens

__all__ = ["DISTILBERT"]

DISTILBERT = Architecture(
    tasks=TEXTS,
    first=Part("distilbert.embeddings", mean=r"\w+_embeddings\.weight|LayerNorm\.(weight|bias)"),
    layers=(
        Part(
            "distilbert.transformer.layer",
            (
                tokens("attention", *(f"attention.{part}" for part in ("q_lin", "k_lin", "v_lin"))),
                tokens("attention.out_lin"),
                tokens("ffn.lin1"),
                tokens("ffn.lin2"),
            ),
            r"(sa_layer_norm|output_layer_norm)\.(weight|bias)",
        ),
    ),
    head=Part("", sequences("pre_classifier", "classifier")),
)
