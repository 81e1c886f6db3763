"""GPT-2, whose linear layers are `Conv1D`: weights with their inputs first."""

from functools import partial

from blindmerge.manifest.rules import TEXTS, Architecture, Part, last_tokens, tokens

__all__ = ["GPT2"]

_conv1d = partial(tokens, layout="inputs-first")

GPT2 = Architecture(
    tasks=TEXTS,
    first=Part("transformer", mean=r"w[tp]e\.weight|ln_f\.(weight|bias)"),
    layers=(
        Part(
            "transformer.h",
            (
                _conv1d("attn.c_attn"),
                _conv1d("attn.c_proj"),
                _conv1d("mlp.c_fc"),
                _conv1d("mlp.c_proj"),
            ),
            r"ln_[12]\.(weight|bias)",
        ),
    ),
    head=Part("", last_tokens("score")),
)
