"""Plans to start from."""

from typing import Any

from blindmerge.encoding import Layout, uniform
from blindmerge.identity import Roster
from blindmerge.manifest import describe
from blindmerge.plan import Masks, Plan
from support.evidence import bert_shapes
from support.secure_sum import identities

__all__ = ["layouts_of", "make_masks", "make_plan", "roster_of"]


def make_masks(owners: int = 4, **options: Any) -> Masks:
    """Masks for some owners.   options: of `Masks.of`."""
    return Masks.of(roster_of(owners), **options)


def roster_of(owners: int) -> Roster:
    """Owners with fixed keys."""
    return Roster.of([each.member for each in identities(owners)])


def layouts_of(plan: Plan) -> list[list[Layout]]:
    """For each sum of a plan, parts with the same public bound 2^12 for all numbers."""
    assert plan.masks != "off"
    options: dict[str, Any] = {"owners": plan.masks.thresholds.owners, "bits": plan.masks.bits}
    return [
        [
            uniform(plan.method.schema_of(plan.blocks[block]), 12, block_elements=1000, **options)
            for block in blocks
        ]
        for blocks in plan.phases
    ]


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
