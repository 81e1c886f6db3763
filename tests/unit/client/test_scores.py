"""Scores are their definitions; entities are those of conlleval and seqeval."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, f1_score
from seqeval.metrics.sequence_labeling import get_entities

from blindmerge.errors import DataInvalid
from blindmerge_client.data import Examples
from blindmerge_client.scores import Scores, score
from blindmerge_client.tasks.token_classification import entities

NAMES = ("no", "yes", "maybe", "never")
TAGS = ("B-LOC", "I-LOC", "B-a-b", "I-a-b", "O")

CASES = st.integers(2, 4).flatmap(
    lambda labels: st.lists(
        st.tuples(st.integers(0, labels - 1), st.integers(0, labels - 1)), min_size=1, max_size=30
    )
)


def of_texts(predicted: Sequence[int], gold: Sequence[int]) -> Scores:
    examples = Examples(("x",) * len(gold), tuple(gold))
    return score("single-label", np.eye(4)[list(predicted)], examples, NAMES)


@given(CASES)
def test_scores_are_their_definitions(pairs: Sequence[tuple[int, int]]) -> None:
    predicted, gold = zip(*pairs, strict=True)
    found = of_texts(predicted, gold)
    assert found.examples == len(pairs)
    assert found.metrics["accuracy"] == pytest.approx(
        sum(p == g for p, g in pairs) / len(pairs), rel=1e-15
    )
    f1 = []
    for label in sorted(set(gold)):
        hits = sum(p == g == label for p, g in pairs)
        precision = Fraction(hits, max(1, predicted.count(label)))
        recall = Fraction(hits, gold.count(label))
        both = precision + recall
        f1.append(2 * precision * recall / both if both else Fraction(0))
    # A sum of at most 4 quotients of exact integers, and one division: 6 roundings.
    assert found.metrics["f1"] == pytest.approx(float(sum(f1) / len(f1)), rel=6 * 2**-53)


def test_scores_of_a_published_example() -> None:
    # scikit-learn's documentation of f1_score: macro average of this case is 0.26...
    found = of_texts([0, 2, 1, 0, 0, 1], [0, 1, 2, 0, 1, 2])
    assert found.metrics["f1"] == pytest.approx(4 / 15, rel=1e-15)


def test_scores_need_as_many_labels_as_predictions() -> None:
    with pytest.raises(DataInvalid, match="2 predictions cannot be scored on 1"):
        of_texts([0, 1], [0])
    with pytest.raises(DataInvalid, match="0 predictions"):
        of_texts([], [])
    words = Examples((("a", "b"), ("c",)), ((0, 1), (2,)))
    with pytest.raises(DataInvalid, match="2 predictions cannot be scored on 3"):
        score("token-classification", np.eye(5)[:2], words, TAGS)


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    # Its ends are inclusive.
    theirs = [(kind, start, end + 1) for kind, start, end in get_entities(tags)]
    assert list(entities(tags)) == theirs


SENTENCES = st.lists(
    st.lists(
        st.tuples(st.integers(0, len(TAGS) - 1), st.integers(0, len(TAGS) - 1)),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=6,
)


@given(SENTENCES)
def test_scores_of_words_are_those_of_seqeval(sentences: list[list[tuple[int, int]]]) -> None:
    gold = tuple(tuple(g for _, g in sentence) for sentence in sentences)
    examples = Examples(tuple(("x",) * len(labels) for labels in gold), gold)
    flat = [p for sentence in sentences for p, _ in sentence]
    found = score("token-classification", np.eye(len(TAGS))[flat], examples, TAGS)
    theirs = [[TAGS[g] for _, g in sentence] for sentence in sentences]
    ours = [[TAGS[p] for p, _ in sentence] for sentence in sentences]
    # Precision, recall and their mean are three roundings each of exact integers.
    assert found.metrics["f1"] == pytest.approx(f1_score(theirs, ours, zero_division=0), rel=1e-15)
    assert found.metrics["accuracy"] == pytest.approx(accuracy_score(theirs, ours), rel=1e-15)
    assert found.examples == len(sentences)


def test_scores_of_the_example_in_seqevals_readme() -> None:
    names = ("B-MISC", "I-MISC", "B-PER", "I-PER", "O")
    gold = ((4, 4, 4, 0, 1, 1, 4), (2, 3, 4))
    predicted = [4, 4, 0, 1, 1, 1, 4, 2, 3, 4]
    examples = Examples(tuple(("x",) * len(labels) for labels in gold), gold)
    found = score("token-classification", np.eye(5)[predicted], examples, names)
    assert found.metrics["f1"] == 0.5


def test_an_entity_ends_with_its_sentence() -> None:
    # Were sentences joined, the gold I-LOC would continue the entity before.
    examples = Examples((("a",), ("b",)), ((0,), (1,)))
    found = score("token-classification", np.eye(5)[[0, 4]], examples, TAGS)
    assert found.metrics["f1"] == pytest.approx(2 / 3)
