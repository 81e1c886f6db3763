"""Configurations of the pico models: width 16, two layers, two heads, 64 positions."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import transformers

__all__ = ["DECODERS", "Architecture", "config_of"]

Architecture: TypeAlias = Literal[
    "bert",
    "roberta",
    "distilbert",
    "mpnet",
    "electra",
    "albert",
    "deberta",
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "mixtral",
    "qwen2-moe",
    "qwen3-moe",
    "t5",
    "t5-gated",
]
DECODERS: frozenset[Architecture] = frozenset(
    {
        "gpt2",
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3",
        "mixtral",
        "qwen2-moe",
        "qwen3-moe",
    }
)

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_BERT_POSITIONS: dict[str, Any] = {"max_position_embeddings": 64}
_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
# As in BERT's tokenizers here; RoBERTa's and MPNet's positions count from the padding id on.
_FROM_PADDING: dict[str, Any] = {
    "max_position_embeddings": 66,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


_EXPERTS: dict[str, Any] = {
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}


def _distilbert(vocabulary: int) -> Any:
    return transformers.DistilBertConfig(
        vocab_size=vocabulary,
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=64,
    )


def _deberta(vocabulary: int) -> Any:
    """As the v3 models have it."""
    kind: Any = transformers.DebertaV2Config
    return kind(
        vocab_size=vocabulary,
        **_SIZES,
        max_position_embeddings=64,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    )


def _t5(vocabulary: int, feed_forward: str = "relu") -> Any:
    kind: Any = transformers.T5Config
    return kind(
        vocab_size=vocabulary,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj=feed_forward,
        decoder_start_token_id=0,
        **_SPECIAL,
    )


def _like_llama(name: str, **options: Any) -> Callable[[int], Any]:
    """Two heads of queries share one of keys and values."""
    sizes = {**_SIZES, **_BERT_POSITIONS, "num_key_value_heads": 1, **_SPECIAL, **options}
    return lambda vocabulary: getattr(transformers, f"{name}Config")(vocab_size=vocabulary, **sizes)


_CONFIGS: Mapping[Architecture, Callable[[int], Any]] = {
    "bert": lambda v: transformers.BertConfig(vocab_size=v, **_SIZES, **_BERT_POSITIONS),
    "roberta": lambda v: transformers.RobertaConfig(
        vocab_size=v, **_SIZES, **_FROM_PADDING, type_vocab_size=1
    ),
    "distilbert": _distilbert,
    "mpnet": lambda v: transformers.MPNetConfig(vocab_size=v, **_SIZES, **_FROM_PADDING),
    "electra": lambda v: transformers.ElectraConfig(
        vocab_size=v, **_SIZES, **_BERT_POSITIONS, embedding_size=8
    ),
    "albert": lambda v: transformers.AlbertConfig(
        vocab_size=v, **_SIZES, **_BERT_POSITIONS, embedding_size=8, **_SPECIAL
    ),
    "deberta": _deberta,
    "gpt2": lambda v: transformers.GPT2Config(
        vocab_size=v, n_embd=16, n_layer=2, n_head=2, n_positions=64, **_SPECIAL
    ),
    "llama": _like_llama("Llama"),
    "mistral": _like_llama("Mistral"),
    "qwen2": _like_llama("Qwen2"),
    "qwen3": _like_llama("Qwen3", head_dim=8),
    "gemma": _like_llama("Gemma", head_dim=8),
    "gemma2": _like_llama("Gemma2", head_dim=8),
    "gemma3": _like_llama("Gemma3Text", head_dim=8),
    "mixtral": _like_llama("Mixtral", num_local_experts=3),
    # One layer with experts and one without.
    "qwen2-moe": _like_llama(
        "Qwen2Moe",
        **_EXPERTS,
        shared_expert_intermediate_size=20,
        mlp_only_layers=[1],
    ),
    "qwen3-moe": _like_llama("Qwen3Moe", **_EXPERTS, head_dim=8),
    "t5": _t5,
    "t5-gated": lambda v: _t5(v, "gated-gelu"),
}


def config_of(architecture: Architecture, vocabulary: int) -> Any:
    """The configuration of a model with so many tokens."""
    return _CONFIGS[architecture](vocabulary)
