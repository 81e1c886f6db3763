"""ALBERT: one layer that runs many times, on projected embeddings.

A published model has one group of layers with one layer in it. What its linear layers get in all
of their runs makes one Gram matrix: the layer that is merged has to serve them all.
"""

from blindmerge.manifest.rules import TEXTS, Architecture, Part, sequences, tokens

__all__ = ["ALBERT"]

_LAYER = "albert_layers.0"
_ATTENTION = f"{_LAYER}.attention"

ALBERT = Architecture(
    tasks=TEXTS,
    first=Part(
        "albert",
        (tokens("encoder.embedding_hidden_mapping_in"),),
        r"embeddings\.(\w+_embeddings\.weight|LayerNorm\.(weight|bias))",
    ),
    layers=(
        Part(
            "albert.encoder.albert_layer_groups",
            (
                tokens(
                    _ATTENTION,
                    *(f"{_ATTENTION}.{part}" for part in ("query", "key", "value")),
                    repeated=True,
                ),
                tokens(f"{_ATTENTION}.dense", repeated=True),
                tokens(f"{_LAYER}.ffn", repeated=True),
                tokens(f"{_LAYER}.ffn_output", repeated=True),
            ),
            rf"{_LAYER}\.(attention\.LayerNorm|full_layer_layer_norm)\.(weight|bias)",
        ),
    ),
    head=Part("", sequences("albert.pooler", "classifier")),
)
