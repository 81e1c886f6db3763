"""BERT and what has its layers: RoBERTa, and ELECTRA, whose embeddings may be narrower.

MiniLM checkpoints are BERT's.
"""

from dataclasses import replace

from blindmerge.manifest.rules import TEXTS, Architecture, GroupRule, Part, sequences, tokens

__all__ = ["BERT", "ELECTRA", "ROBERTA"]

_LAYER = (
    tokens("attention.self", *(f"attention.self.{part}" for part in ("query", "key", "value"))),
    tokens("attention.output.dense"),
    tokens("intermediate.dense"),
    tokens("output.dense"),
)
_EMBEDDINGS = r"\w+_embeddings\.weight|LayerNorm\.(weight|bias)"
_NORMS = r"(attention\.)?output\.LayerNorm\.(weight|bias)"

BERT = Architecture(
    tasks=TEXTS,
    first=Part("bert.embeddings", mean=_EMBEDDINGS),
    layers=(Part("bert.encoder.layer", _LAYER, _NORMS),),
    head=Part("", sequences("bert.pooler.dense", "classifier")),
)
ROBERTA = Architecture(
    tasks=TEXTS,
    first=Part("roberta.embeddings", mean=_EMBEDDINGS),
    layers=(Part("roberta.encoder.layer", _LAYER, _NORMS),),
    head=Part("", sequences("classifier.dense", "classifier.out_proj")),
)
ELECTRA = replace(
    ROBERTA,
    first=Part(
        "electra",
        # Only where embeddings are narrower than hidden states.
        (GroupRule("embeddings_project", "tokens", ("embeddings_project",), optional=True),),
        rf"embeddings\.({_EMBEDDINGS})",
    ),
    layers=(Part("electra.encoder.layer", _LAYER, _NORMS),),
)
