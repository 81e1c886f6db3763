"""Several labels for a text, or a number: data, scores, training, predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, DataInvalid
from blindmerge.tasks import METRICS, Task, check_labels
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.finetune import finetune, prepare_base
from blindmerge_client.models import load_model, load_tokenizer
from blindmerge_client.options import TrainingOptions
from blindmerge_client.predict import predict
from blindmerge_client.scores import score
from blindmerge_client.tasks import TASKS
from support.pico import examples_for, labels_for, pico_encoder

TASKS_HERE: tuple[Task, ...] = ("multi-label", "regression")
LABELS = ("red", "green", "blue")
TOPICS = Examples(("a, b", "c", "d"), ((1, 0, 1), (0, 0, 0), (0, 1, 0)))
RATINGS = Examples(("a, b", "c", "d"), (1.0, -2.5, 3.0))
each_task = pytest.mark.parametrize("task", TASKS_HERE)


def rows_of(task: Task) -> list[dict[str, Any]]:
    if task == "regression":
        return [{"text": t, "label": n} for t, n in zip(RATINGS.texts, (1, -2.5, 3), strict=True)]
    names: tuple[list[str], ...] = (["blue", "red"], [], ["green"])
    return [{"text": t, "labels": n} for t, n in zip(TOPICS.texts, names, strict=True)]


def expected(task: Task) -> tuple[Examples, tuple[str, ...]]:
    return (RATINGS, ("stars",)) if task == "regression" else (TOPICS, LABELS)


@each_task
def test_every_format_gives_the_same_examples(task: Task, tmp_path: Path) -> None:
    examples, labels = expected(task)
    rows = rows_of(task)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    if task == "regression":
        columns["label"] = [float(each) for each in columns["label"]]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    csv = {
        "regression": 'text,label\n"a, b",1\nc,-2.5\nd,3e0\n',
        "multi-label": 'text,labels\n"a, b",blue; red\nc,\nd,green\n',
    }[task]
    (tmp_path / "a.csv").write_text(csv)
    for suffix in (".jsonl", ".parquet", ".csv"):
        found = read_examples(tmp_path / f"a{suffix}", labels, task)
        assert (found.texts, found.labels) == (examples.texts, examples.labels), suffix
        assert found.fit(task, len(labels))


BROKEN: list[tuple[Task, str, str, str]] = [
    ("multi-label", ".jsonl", '{"text": "x", "label": "red"}', "has no 'labels'"),
    ("multi-label", ".jsonl", '{"text": "x", "labels": "red"}', "of type str, not a list"),
    ("multi-label", ".jsonl", '{"text": "x", "labels": ["red", "pink"]}', "label 2 is not one"),
    ("multi-label", ".jsonl", '{"text": "x", "labels": ["red", 1]}', "label 2 is of type int"),
    ("multi-label", ".jsonl", '{"text": "x", "labels": ["red", "red"]}', "twice"),
    ("multi-label", ".jsonl", '{"text": " ", "labels": []}', "the text is empty"),
    ("multi-label", ".csv", "text,labels\nx,red;pink", "label 2 is not one"),
    ("regression", ".jsonl", '{"text": "x", "label": "3"}', "of type str, not a number"),
    ("regression", ".jsonl", '{"text": "x", "label": true}', "of type bool, not a number"),
    ("regression", ".jsonl", '{"text": "x", "label": null}', "of type NoneType"),
    ("regression", ".jsonl", '{"text": "x", "label": NaN}', "not a finite number"),
    ("regression", ".jsonl", '{"text": "x", "label": 1e999}', "not a finite number"),
    ("regression", ".jsonl", f'{{"text": "x", "label": 1{"0" * 400}}}', "not a finite number"),
    ("regression", ".csv", "text,label\nx,secret", "of type str, not a number"),
    ("regression", ".csv", "text,label\nx,inf", "not a finite number"),
]


@pytest.mark.parametrize(("task", "suffix", "content", "words"), BROKEN)
def test_mistakes_are_named_and_not_quoted(
    task: Task, suffix: str, content: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(content)
    with pytest.raises(DataInvalid, match=words) as raised:
        read_examples(path, expected(task)[1], task)
    assert "row 1" in raised.value.message
    assert "secret" not in raised.value.message + raised.value.hint
    assert "pink" not in raised.value.message + raised.value.hint


def test_labels_of_a_task() -> None:
    check_labels("regression", ("stars",))
    check_labels("multi-label", LABELS)
    with pytest.raises(ValueError, match="one label"):
        check_labels("regression", ("a", "b"))
    with pytest.raises(ValueError, match="at least two"):
        check_labels("multi-label", ("a",))


PAIRS = st.integers(2, 4).flatmap(
    lambda labels: st.lists(
        st.tuples(*(st.tuples(st.booleans(), st.booleans()) for _ in range(labels))),
        min_size=1,
        max_size=12,
    )
)


@given(PAIRS)
def test_scores_of_several_labels_are_those_of_scikit_learn(
    rows: list[tuple[tuple[bool, bool], ...]],
) -> None:
    pairs = np.array(rows, dtype=int)
    predicted, gold = pairs[:, :, 0], pairs[:, :, 1]
    examples = Examples(("x",) * len(gold), tuple(tuple(each) for each in gold.tolist()))
    found = score("multi-label", np.where(predicted, 0.9, 0.1), examples, LABELS).metrics
    occur = np.flatnonzero(gold.any(axis=0))
    options: dict[str, Any] = {"labels": occur, "zero_division": 0}
    macro = f1_score(gold, predicted, average="macro", **options) if len(occur) else 0.0
    assert found["micro_f1"] == pytest.approx(
        f1_score(gold, predicted, average="micro", zero_division=0), rel=1e-15
    )
    assert found["macro_f1"] == pytest.approx(macro, rel=4e-15)


NUMBERS = st.lists(
    st.tuples(st.integers(-8, 8), st.integers(-8, 8)), min_size=3, max_size=20
).filter(lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True)))


@given(NUMBERS)
def test_scores_of_numbers_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = (np.array(side, dtype=float) / 4 for side in zip(*pairs, strict=True))
    examples = Examples(("x",) * len(theirs), tuple(theirs.tolist()))
    found = score("regression", ours[:, None], examples, ("stars",)).metrics
    assert found["mse"] == pytest.approx(np.mean((ours - theirs) ** 2), rel=1e-14)
    assert found["pearson"] == pytest.approx(stats.pearsonr(ours, theirs)[0], abs=1e-13)
    assert found["spearman"] == pytest.approx(stats.spearmanr(ours, theirs)[0], abs=1e-13)


def test_a_constant_correlates_with_nothing() -> None:
    found = score("regression", np.ones((3, 1)), RATINGS, ("stars",)).metrics
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


@each_task
def test_there_is_a_prediction_for_every_text(task: Task) -> None:
    examples, labels = expected(task)
    assert score(task, np.zeros((3, len(labels))), examples, labels).metrics.keys() == {
        metric.id for metric in METRICS[task]
    }
    with pytest.raises(DataInvalid, match="2 predictions cannot be scored on 3"):
        score(task, np.zeros((2, len(labels))), examples, labels)


@each_task
def test_an_ensemble_is_the_mean_of_what_models_predict(task: Task) -> None:
    found = TASKS[task].combine([np.array([[0.25]]), np.array([[0.75]]), np.array([[1.25]])])
    np.testing.assert_allclose(found, [[0.75]], rtol=2**-52)


@each_task
def test_examples_of_other_tasks_do_not_fit(task: Task) -> None:
    examples, labels = expected(task)
    assert not examples.fit("single-label", 3)
    assert not examples.fit(task, len(labels) + 1)
    assert not examples_for("token-classification", 3).fit(task, len(labels))


@each_task
def test_a_model_learns_the_task_and_its_predictions_are_those_of_each_text(
    task: Task, tmp_path: Path
) -> None:
    labels, base, own = labels_for(task), tmp_path / "base", tmp_path / "own"
    prepare_base(pico_encoder(tmp_path / "encoder"), labels, 0, base, task)
    assert Checkpoint(base).task == task
    options = TrainingOptions(epochs=12, learning_rate=1e-2, batch_size=16, max_length=32)
    finetune(base, examples_for(task, 300), options, own)
    assert Checkpoint(own).task == task
    test = examples_for(task, 100, seed=1)
    predictions = predict(own, test.texts, 32)
    found = score(task, predictions, test, labels).metrics
    # Words decide. To say that every label holds has an F1 of two thirds, since half of them do; a
    # number that does not follow from the text has no correlation.
    assert found["micro_f1" if task == "multi-label" else "pearson"] > 0.75
    model, tokenizer = load_model(own), load_tokenizer(own)
    for text, row in zip(test.texts[:5], predictions, strict=False):
        with torch.no_grad():
            logits = model(**tokenizer(str(text), return_tensors="pt")).logits[0].double()
        alone = torch.sigmoid(logits) if task == "multi-label" else logits
        # bfloat16 on some processors: see test_predict.
        np.testing.assert_allclose(row, alone.numpy(), rtol=0, atol=0.12)


@each_task
def test_the_loss_is_the_tasks(task: Task, tmp_path: Path) -> None:
    from blindmerge_client import finetune as module
    from blindmerge_client.batches import tokenize

    base = pico_encoder(tmp_path / "base", labels=labels_for(task), task=task)
    model, tokenizer = load_model(base), load_tokenizer(base)
    examples, rules = examples_for(task, 6), TASKS[task]
    rows = [
        module._Row(tokens, rules.target(tokens.words, label))
        for tokens, label in zip(
            tokenize(tokenizer, examples.texts, 32), examples.labels, strict=True
        )
    ]
    with torch.no_grad():
        output = model(**module._collate(tokenizer, rows, rules))
    logits, gold = output.logits.double().numpy(), np.array(examples.labels, dtype=float)
    if task == "multi-label":
        terms = np.log1p(np.exp(logits)) - gold * logits
    else:
        terms = (logits[:, 0] - gold) ** 2
    assert float(output.loss) == pytest.approx(terms.mean(), rel=1e-5)


@each_task
def test_a_classifier_of_another_task_is_no_base(task: Task, tmp_path: Path) -> None:
    labels = ("a", "b")
    source = pico_encoder(tmp_path / "source", labels=labels)
    with pytest.raises(CheckpointInvalid, match=f"'single-label', the job is '{task}'"):
        prepare_base(source, labels_for(task), 0, tmp_path / "base", task)
