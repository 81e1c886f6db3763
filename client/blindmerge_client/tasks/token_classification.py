"""A tag for every word: `tokens`, a list of words, and `tags`, a label name for each of them.

A word is predicted from its first token. One without a token, since its text was cut or the
tokenizer knows none of its characters, is outside of all entities: `O` with probability 1.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from blindmerge.errors import DataInvalid
from blindmerge.statistic import Array
from blindmerge_client.tasks.rules import (
    Form,
    Head,
    Label,
    Outputs,
    Row,
    Target,
    TaskRules,
    Text,
    check_rows,
    checked_label,
    checked_list,
    checked_text,
)
from blindmerge_client.tasks.single_label import accuracy, mean_of_probabilities

__all__ = ["TOKEN_CLASSIFICATION", "entities"]

_IGNORED = -100  # torch's label for what has no part in the loss


def _read(
    fields: Row, index: Mapping[str, int], where: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens, tags = checked_list(fields, "tokens", where), checked_list(fields, "tags", where)
    if len(tokens) != len(tags):
        raise DataInvalid(
            f"{where}: {len(tokens)} tokens come with {len(tags)} tags",
            hint="every token needs its tag",
        )
    words = tuple(checked_text(each, f"token {n}", where) for n, each in enumerate(tokens, 1))
    if not any(word.strip() for word in words):
        raise DataInvalid(f"{where}: there are no words", hint="leave such rows out")
    return words, tuple(
        checked_label(each, f"tag {n}", index, where) for n, each in enumerate(tags, 1)
    )


def _fits(text: Text, label: Label, labels: int) -> bool:
    return (
        isinstance(text, tuple)
        and isinstance(label, tuple)
        and len(text) == len(label)
        and all(0 <= index < labels for index in label)
    )


def _target(words: Sequence[int] | None, label: Label) -> Target:
    """The label of each token: its word's at the first one, else none."""
    tags = label if isinstance(label, tuple) else ()
    return [_IGNORED if word < 0 else tags[word] for word in words or ()]


def _each_word(outputs: Outputs) -> Iterator[Array]:
    outside = np.where(np.array(outputs.labels) == "O", 0.0, -np.inf)
    words = np.asarray(outputs.words)
    for text, numbers, of_tokens in zip(outputs.texts, words, outputs.logits, strict=True):
        by_word = np.tile(outside, (len(text), 1))
        by_word[numbers[numbers >= 0]] = of_tokens[numbers >= 0]
        yield by_word


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Type, start and end (exclusive) of each entity in the BIO tags of a text.

    As conlleval and seqeval by default: an `I-` that continues no entity of its type begins one.
    """
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            yield kind, start, place
            kind = ""
        if name and not kind:
            start, kind = place, name


def _score(
    predictions: Array, labels: Sequence[Label], names: Sequence[str]
) -> Mapping[str, float]:
    """Accuracy of words, and F1 over all entities; one is right if its words and its type are.

    Without any entity, right or predicted, F1 is 0.
    """
    by_text = [np.asarray(each) for each in labels]
    check_rows(predictions, sum(map(len, by_text)))
    gold, predicted = np.concatenate(by_text), predictions.argmax(axis=1)
    ends = np.cumsum([len(each) for each in by_text])[:-1]
    right = total = 0
    for ours, theirs in zip(np.split(predicted, ends), by_text, strict=True):
        found, there = (set(entities(np.asarray(names)[part].tolist())) for part in (ours, theirs))
        right += len(found & there)
        total += len(found) + len(there)
    return {"accuracy": accuracy(predicted, gold), "f1": 2 * right / total if total else 0.0}


TOKEN_CLASSIFICATION = TaskRules(
    form=Form(
        ("tokens", "tags"), '{"tokens": ["...", "..."], "tags": ["O", "..."]}', _read, csv=None
    ),
    head=Head(
        auto="AutoModelForTokenClassification",
        classes="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        # To a byte-level tokenizer, RoBERTa's, a word is another token after a space.
        tokenizer={"add_prefix_space": True},
    ),
    fits=_fits,
    target=_target,
    rows=_each_word,
    combine=mean_of_probabilities,
    score=_score,
    padding=_IGNORED,
)
