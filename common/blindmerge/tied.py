"""Tensors that are one in memory and stored twice: the same embeddings, also as output layer.

transformers stores one of them, other writers both. They are merged once, as the embeddings that
they are: two copies that are merged by two rules would differ, and one of them would be lost.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from blindmerge.errors import CheckpointInvalid
from blindmerge.tensorfile import Stored, read_tensor

__all__ = ["without_copies"]

_EMBEDDINGS = ("shared.weight", "transformer.wte.weight", "model.embed_tokens.weight")
_COPIES = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def without_copies(stored: Mapping[str, Stored], config: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors of a checkpoint without copies of its embeddings.

    Raises CheckpointInvalid if the config says that the two are one and their numbers differ.
    """
    kept = dict(stored)
    source = next((name for name in _EMBEDDINGS if name in stored), None)
    if source is None:
        return kept
    for copy in _COPIES:
        if copy not in stored or stored[copy].shape != stored[source].shape:
            continue
        if copy == "lm_head.weight" and config.get("tie_word_embeddings") is False:
            continue
        theirs, ours = (read_tensor(stored[name], name) for name in (source, copy))
        if np.array_equal(theirs, ours):
            del kept[copy]
        elif copy != "lm_head.weight" or config.get("tie_word_embeddings") is True:
            raise CheckpointInvalid(
                f"'{copy}' in '{stored[copy].file}' differs from '{source}', which it is tied to",
                hint="save the model again with transformers' `save_pretrained`",
            )
    return kept
