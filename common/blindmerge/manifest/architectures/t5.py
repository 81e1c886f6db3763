"""T5: an encoder, and a decoder that also looks at what the encoder returns.

Keys and values of that attention get the encoder's output, whose rows are tokens of the source;
everything else in the decoder has a row per token of the target. Nothing has a bias. The first
layer of each stack has the table of relative positions that all of the stack use.
"""

from blindmerge.manifest.rules import Architecture, GroupRule, Part, tokens

__all__ = ["T5"]


def _targets(name: str, *layers: str, optional: bool = False) -> GroupRule:
    return GroupRule(name, "target-tokens", layers or (name,), optional=optional)


def _wide(path: str) -> tuple[str, ...]:
    """The first layers of the feed-forward network: one, or two of which one is a gate."""
    return tuple(f"{path}.{name}" for name in ("wi", "wi_0", "wi_1"))


_NORMS = r"layer\.\d\.layer_norm\.weight|layer\.0\.SelfAttention\.relative_attention_bias\.weight"
_SELF, _CROSS = "layer.0.SelfAttention", "layer.1.EncDecAttention"
_ENCODER_FF, _DECODER_FF = "layer.1.DenseReluDense", "layer.2.DenseReluDense"

T5 = Architecture(
    tasks=("seq2seq",),
    first=Part("", mean=r"shared\.weight|(encoder|decoder)\.final_layer_norm\.weight"),
    layers=(
        Part(
            "encoder.block",
            (
                tokens(_SELF, *(f"{_SELF}.{part}" for part in "qkv")),
                tokens(f"{_SELF}.o"),
                tokens(_ENCODER_FF, *_wide(_ENCODER_FF), optional=True),
                tokens(f"{_ENCODER_FF}.wo"),
            ),
            _NORMS,
        ),
        Part(
            "decoder.block",
            (
                _targets(_SELF, *(f"{_SELF}.{part}" for part in "qkv")),
                _targets(f"{_SELF}.o"),
                _targets(f"{_CROSS}.q"),
                # The encoder's output is there before the decoder begins.
                tokens(_CROSS, f"{_CROSS}.k", f"{_CROSS}.v", parallel=True),
                _targets(f"{_CROSS}.o"),
                _targets(_DECODER_FF, *_wide(_DECODER_FF), optional=True),
                _targets(f"{_DECODER_FF}.wo"),
            ),
            _NORMS,
        ),
    ),
    # Mostly one tensor with the embeddings, and then merged as they are.
    head=Part("", (_targets("lm_head", optional=True),)),
)
