"""A plan's task, model and labels belong together."""

import pytest
from pydantic import ValidationError

from blindmerge.manifest import describe
from blindmerge.plan import Plan
from blindmerge.tasks import are_tags
from support.evidence import bert_shapes
from support.plans import make_plan

HEAD = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
SHAPES = {name: shape for name, shape in bert_shapes().items() if name not in HEAD}
TAGGER = describe("BertForTokenClassification", SHAPES)
TAGS = ("B-PER", "I-PER", "O")


def test_a_plan_for_words_survives_its_encoding() -> None:
    plan = make_plan(task="token-classification", manifest=TAGGER, labels=TAGS)
    assert Plan.decode(plan.encode()) == plan


def test_the_task_is_the_models() -> None:
    with pytest.raises(ValidationError, match="not one for the task"):
        make_plan(task="token-classification", labels=TAGS)
    with pytest.raises(ValidationError, match="not one for the task"):
        make_plan(manifest=TAGGER, labels=TAGS)
    unknown = TAGGER.model_copy(update={"architecture": "GptForTokenClassification"})
    with pytest.raises(ValidationError, match="not one for the task"):
        make_plan(task="token-classification", manifest=unknown, labels=TAGS)


def test_labels_of_words_are_tags() -> None:
    with pytest.raises(ValidationError, match='tags of words are "O"'):
        make_plan(task="token-classification", manifest=TAGGER, labels=("no", "yes", "maybe"))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("O", "B-a"), True),
        (("I-a-b", "O", "B-a-b"), True),
        (("B-a", "I-a"), False),
        (("O", "B-"), False),
        (("O", "B_a"), False),
        (("O", "E-a"), False),
        (("O", "o"), False),
        (("O", "B-a\n"), False),
    ],
)
def test_tags_are_outside_begin_and_inside(labels: tuple[str, ...], expected: bool) -> None:
    assert are_tags(labels) is expected
