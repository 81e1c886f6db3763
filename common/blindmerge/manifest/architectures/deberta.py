"""DeBERTa-v2 and -v3: BERT's layers, with queries and keys of relative positions.

The projections of queries and keys run twice, on the tokens and on a table of relative positions
(He et al., "DeBERTaV3", ICLR 2023, section 2). Their Gram matrix weighs the two alike; that of the
values, which see tokens alone, is one of its own. Models in which positions have projections of
their own, or pass through a convolution, have tensors that no rule names.
"""

from blindmerge.manifest.rules import TEXTS, Architecture, GroupRule, Part, sequences, tokens

__all__ = ["DEBERTA_V2"]

_ATTENTION = "attention.self"

DEBERTA_V2 = Architecture(
    tasks=TEXTS,
    first=Part(
        "deberta",
        # Only where embeddings are narrower than hidden states.
        (tokens("embeddings.embed_proj", optional=True),),
        r"embeddings\.(\w+_embeddings\.weight|LayerNorm\.(weight|bias))"
        r"|encoder\.(rel_embeddings\.weight|LayerNorm\.(weight|bias))",
    ),
    layers=(
        Part(
            "deberta.encoder.layer",
            (
                GroupRule(
                    _ATTENTION,
                    "tokens-and-positions",
                    (f"{_ATTENTION}.query_proj", f"{_ATTENTION}.key_proj"),
                ),
                tokens(f"{_ATTENTION}.value_proj", parallel=True),
                tokens("attention.output.dense"),
                tokens("intermediate.dense"),
                tokens("output.dense"),
            ),
            r"(attention\.)?output\.LayerNorm\.(weight|bias)",
        ),
    ),
    head=Part("", sequences("pooler.dense", "classifier")),
)
