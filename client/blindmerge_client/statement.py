"""What will leave the owner's machine in a job, in plain words, before anybody approves it."""

from collections import Counter
from math import prod

from blindmerge.identity import Roster
from blindmerge.plan import Plan

__all__ = ["statement"]

_MEANING = {
    "delta": "changes of weights by your training",
    "gram": "Gram matrices: how often features of your texts occur together",
    "moment": "Gram matrices times changes of weights",
    "rows": "how many tokens or texts a layer saw",
    "starved": "whether a layer saw too few of them",
    "weight": "how much you count",
    "fisher": "Fisher information: how much each weight matters to your texts",
    "fisher-delta": "Fisher information times changes of weights",
    "positive": "the largest changes of weights that go up",
    "negative": "the largest changes of weights that go down",
    "positive-count": "which changes go up",
    "negative-count": "which changes go down",
}
"""By the part of a name after the colon."""

_PLAIN_BYTES = 8  # of a number that is sent without masks


def statement(plan: Plan, roster: Roster | None, publishes_scores: bool) -> tuple[str, ...]:
    """The statement, one paragraph each.

    roster: of the plan; None if the owner does not have it.
    publishes_scores: whether the owner has test data whose scores are told to the coordinator.
    """
    return (*_contents(plan), *_company(plan, roster), _otherwise(publishes_scores))


def _contents(plan: Plan) -> list[str]:
    """What is sent: numbers by kind, and their bytes."""
    counts: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for block in plan.blocks:
        for name, shape in plan.method.schema_of(block).items():
            kind = name.rpartition(":")[2]
            counts[kind] += 1
            numbers[kind] += prod(shape)
    each = _PLAIN_BYTES if plan.masks == "off" else plan.masks.bits // 8
    lines = [
        f"  {counts[kind]:>5} x {_MEANING.get(kind, kind)}; {numbers[kind] * each:,} bytes"
        for kind in numbers
    ]
    return [
        f"Job '{plan.job}' makes {sum(counts.values())} tensors from at most {plan.examples:,} "
        f"of your training examples, {numbers.total() * each:,} bytes in all:",
        *lines,
        "No text, label or prediction of yours is among them.",
    ]


def _company(plan: Plan, roster: Roster | None) -> list[str]:
    """With whom it is summed, and who must be honest."""
    if plan.masks == "off":
        return ["WITHOUT MASKS: the server sees every one of these numbers of yours."]
    thresholds = plan.masks.thresholds
    names = "" if roster is None else f": {roster.names(range(len(roster)))}"
    honest = thresholds.owners - 1 - thresholds.colluders
    return [
        f"They leave under masks. The server sees only sums over at least {thresholds.quorum} of "
        f"{thresholds.owners} owners{names}.",
        f"That holds while {honest} of the {thresholds.owners - 1} other owners are honest, "
        f"whatever the server does. Owners who pool all that they sent can subtract it: if all "
        "others in a sum did so, they would see your numbers.",
        "A sum can itself tell something, the more the fewer the owners: see 'What it protects' "
        "in the README.",
    ]


def _otherwise(publishes_scores: bool) -> str:
    told = "your name, when you answered, the kind of an error"
    if publishes_scores:
        told += ", and in clear the accuracy, F1 and size of your test data (`test`)"
    return f"Beside that the coordinator learns {told}."
