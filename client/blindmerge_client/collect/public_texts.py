"""Sentences that are nobody's: Python's own manual, which every installation brings along.

What noise needs to know of texts in general must not come from an owner's. A manual has the words
and word order of a language, which random words of a tokenizer have not: inputs of layers over
random words are off by a factor of ten in size.
"""

import re
from functools import cache
from pydoc_data.topics import topics

import numpy as np

__all__ = ["public_texts"]

_LEAST_WORDS, _MOST_WORDS = 4, 40
_WORDS = 0.7  # least part of a sentence that are words, and not signs of a program


@cache
def _sentences() -> tuple[str, ...]:
    found = []
    for name in sorted(topics):
        for sentence in re.split(r"(?<=[.!?])\s+|\n\n", topics[name]):
            tokens = re.findall(r"[A-Za-z][A-Za-z'-]*|[.,!?]", sentence)
            words = sum(token.isalpha() for token in tokens)
            if len(tokens) >= _LEAST_WORDS and words > _WORDS * len(tokens):
                found.append(" ".join(tokens[:_MOST_WORDS]))
    return tuple(found)


def public_texts(count: int, rng: np.random.Generator) -> list[str]:
    """So many different sentences."""
    sentences = _sentences()
    return [sentences[at] for at in rng.choice(len(sentences), count, replace=False).tolist()]
