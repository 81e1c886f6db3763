"""Plans to start from."""

from typing import Any

from blindmerge.identity import Roster
from blindmerge.manifest import describe
from blindmerge.plan import Masks, Plan
from support.evidence import bert_shapes
from support.secure_sum import identities

__all__ = ["make_masks", "make_plan"]


def make_masks(owners: int = 4, **options: Any) -> Masks:
    """Masks for some owners.   options: of `Masks.of`."""
    return Masks.of(Roster.of([each.member for each in identities(owners)]), **options)


def make_plan(**changes: Any) -> Plan:
    """A plan for a small BERT with three labels, with some fields changed."""
    fields: dict[str, Any] = {
        "job": "job-1",
        "base": "0123456789abcdef" * 4,
        "manifest": describe("BertForSequenceClassification", bert_shapes()),
        "labels": ("no", "yes", "maybe"),
        "method": {"name": "regmean"},
        "examples": 1000,
        "max_length": 128,
        "masks": "off",
    }
    return Plan.model_validate(fields | changes)
