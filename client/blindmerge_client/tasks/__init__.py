"""Every task that owners can have: a literal table, with one file per task.

What a row of an owner's file has depends on the task; each file begins with it.
"""

from collections.abc import Mapping

from blindmerge.tasks import Task
from blindmerge_client.tasks.image_classification import IMAGE_CLASSIFICATION
from blindmerge_client.tasks.language import CAUSAL_LM, SEQ2SEQ
from blindmerge_client.tasks.multi_label import MULTI_LABEL
from blindmerge_client.tasks.regression import REGRESSION
from blindmerge_client.tasks.rules import (
    Form,
    Head,
    Image,
    Label,
    Outputs,
    Pair,
    Row,
    Target,
    TaskRules,
    Text,
    contents,
)
from blindmerge_client.tasks.single_label import SINGLE_LABEL
from blindmerge_client.tasks.token_classification import TOKEN_CLASSIFICATION

__all__ = [
    "TASKS",
    "Form",
    "Head",
    "Image",
    "Label",
    "Outputs",
    "Pair",
    "Row",
    "Target",
    "TaskRules",
    "Text",
    "contents",
]

TASKS: Mapping[Task, TaskRules] = {
    "single-label": SINGLE_LABEL,
    "multi-label": MULTI_LABEL,
    "regression": REGRESSION,
    "token-classification": TOKEN_CLASSIFICATION,
    "causal-lm": CAUSAL_LM,
    "seq2seq": SEQ2SEQ,
    "image-classification": IMAGE_CLASSIFICATION,
}
