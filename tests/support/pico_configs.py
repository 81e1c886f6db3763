"""Configurations of the pico models: width 16, two layers, two heads, 64 positions."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from transformers import (
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
)

__all__ = ["Architecture", "config_of"]

Architecture: TypeAlias = Literal["bert", "roberta", "distilbert", "mpnet", "electra"]

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
# As in BERT's tokenizers here; RoBERTa's and MPNet's positions count from the padding id on.
_FROM_PADDING: dict[str, Any] = {
    "max_position_embeddings": 66,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


def _distilbert(vocabulary: int) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=vocabulary,
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=64,
    )


_CONFIGS: Mapping[Architecture, Callable[[int], Any]] = {
    "bert": lambda v: BertConfig(vocab_size=v, **_SIZES, max_position_embeddings=64),
    "roberta": lambda v: RobertaConfig(vocab_size=v, **_SIZES, **_FROM_PADDING, type_vocab_size=1),
    "distilbert": _distilbert,
    "mpnet": lambda v: MPNetConfig(vocab_size=v, **_SIZES, **_FROM_PADDING),
    "electra": lambda v: ElectraConfig(
        vocab_size=v, **_SIZES, max_position_embeddings=64, embedding_size=8
    ),
}


def config_of(architecture: Architecture, vocabulary: int) -> Any:
    """The configuration of a model with so many tokens."""
    return _CONFIGS[architecture](vocabulary)
