"""Language models: `text`, of which every token is predicted from those before it; or `source`
and `target`, where each token of the target is predicted from the source and those before it.

Predictions are made by teacher forcing, never by generating: a model gets the right tokens and
is asked for the next one. A target is an exact match if each of its tokens has the highest
probability given the right ones before it, which is just what greedy decoding needs to give it.

A row of predictions is a token: the logarithm of its probability, whether it was the likeliest,
and whether its text begins with it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from blindmerge.errors import DataInvalid
from blindmerge.statistic import Array
from blindmerge_client.tasks.rules import (
    Form,
    Head,
    Label,
    Outputs,
    Pair,
    Row,
    Target,
    TaskRules,
    Text,
    whole_text,
)

__all__ = ["CAUSAL_LM", "SEQ2SEQ"]

_LOG_P, _RIGHT, _FIRST = range(3)


def _read_text(fields: Row, _index: Mapping[str, int], where: str) -> tuple[Text, Label]:
    return whole_text(fields, "text", where), ()


def _read_pair(fields: Row, _index: Mapping[str, int], where: str) -> tuple[Text, Label]:
    return Pair(whole_text(fields, "source", where), whole_text(fields, "target", where)), ()


def _fits_text(text: Text, label: Label, _labels: int) -> bool:
    return isinstance(text, str) and label == ()


def _fits_pair(text: Text, label: Label, _labels: int) -> bool:
    return isinstance(text, Pair) and label == ()


def _target(_words: Sequence[int] | None, _label: Label) -> Target:
    """The tokens are their own targets (see `TaskRules.language`)."""
    return []


def _each_token(outputs: Outputs) -> Iterator[Array]:
    """logits: of the targets, [texts, tokens, 2], NaN where there is none."""
    for scores in outputs.logits:
        found = scores[~np.isnan(scores[:, _LOG_P])]
        first = np.zeros((len(found), 1))
        first[:1] = 1.0
        yield np.hstack([found, first])


def _combine(predictions: Sequence[Array]) -> Array:
    """Of several models: the mean of the probabilities; right is what most models have right."""
    stacked = np.stack(predictions)
    combined = np.array(stacked[0])
    combined[:, _LOG_P] = np.logaddexp.reduce(stacked[..., _LOG_P]) - math.log(len(stacked))
    combined[:, _RIGHT] = stacked[..., _RIGHT].mean(axis=0) > 0.5
    return combined


def _checked(predictions: Array, labels: Sequence[Label]) -> None:
    if len(predictions) == 0 or len(labels) == 0 or predictions.shape[1:] != (3,):
        raise DataInvalid(
            "there is no token to predict", hint="a text needs two tokens, a target one"
        )


def _score_texts(
    predictions: Array, labels: Sequence[Label], _names: Sequence[str]
) -> Mapping[str, float]:
    """Perplexity, exp of the mean cross-entropy of all tokens, and part of them foretold."""
    _checked(predictions, labels)
    return {
        "perplexity": _perplexity(predictions),
        "accuracy": float(predictions[:, _RIGHT].mean()),
    }


def _score_pairs(
    predictions: Array, labels: Sequence[Label], _names: Sequence[str]
) -> Mapping[str, float]:
    """Perplexity of the targets' tokens, part of the targets matched, part of their tokens."""
    _checked(predictions, labels)
    starts = np.flatnonzero(predictions[:, _FIRST])
    matched = np.minimum.reduceat(predictions[:, _RIGHT], starts)
    return {
        "perplexity": _perplexity(predictions),
        "exact_match": float(matched.sum()) / len(labels),
        "accuracy": float(predictions[:, _RIGHT].mean()),
    }


def _perplexity(predictions: Array) -> float:
    # A model that has gone astray stays a number that can be sent and drawn.
    return math.exp(min(-float(predictions[:, _LOG_P].mean()), 700.0))


CAUSAL_LM = TaskRules(
    form=Form(("text",), '{"text": "..."}', _read_text),
    head=Head(auto="AutoModelForCausalLM", classes="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    fits=_fits_text,
    target=_target,
    rows=_each_token,
    combine=_combine,
    score=_score_texts,
    language=True,
)
SEQ2SEQ = TaskRules(
    form=Form(("source", "target"), '{"source": "...", "target": "..."}', _read_pair),
    head=Head(auto="AutoModelForSeq2SeqLM", classes="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    fits=_fits_pair,
    target=_target,
    rows=_each_token,
    combine=_combine,
    score=_score_pairs,
    language=True,
)
