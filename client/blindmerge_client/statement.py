"""What will leave the owner's machine in a job, in plain words, before anybody approves it."""

import textwrap
from collections import Counter
from math import prod

from blindmerge.identity import Roster
from blindmerge.plan import Plan
from blindmerge.privacy.wording import guarantee
from blindmerge.tasks import METRICS, Task

__all__ = ["filled", "statement"]

_MEANING = {
    "delta": "changes of weights by your training",
    "gram": "Gram matrices: how often features of your texts occur together",
    "half-gram": "Gram matrices of half of your texts",
    "half-moment": "these times changes of weights",
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

_WIDTH = 80
_PLAIN_BYTES = 8  # of a number that is sent without masks


def statement(plan: Plan, roster: Roster | None, publishes_scores: bool) -> tuple[str, ...]:
    """The statement, in lines of at most 80 characters.

    roster: of the plan; None if the owner does not have it.
    publishes_scores: whether the owner has test data whose scores are told to the coordinator.
    """
    return (
        *_contents(plan),
        *filled(guarantee(plan.noise)),
        *_company(plan, roster),
        *_otherwise(plan.task, publishes_scores),
    )


def filled(text: str, indent: int = 0) -> list[str]:
    """A paragraph in lines of at most 80 characters.   indent: of all lines but the first."""
    return textwrap.wrap(text, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)


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
    lines = filled(
        f"Job '{plan.job}' makes {sum(counts.values())} tensors, {numbers.total() * each:,} bytes "
        f"in all, from at most {plan.examples:,} of your training examples:"
    )
    width = len(f"{max(numbers.values()) * each:,}")
    for kind, count in numbers.most_common():
        head = f"  {count * each:>{width},} bytes  {counts[kind]:>5} x "
        lines += filled(f"{head}{_MEANING.get(kind, kind)}", len(head))
    if plan.manifest.kept:
        lines += filled(f"Your model's head stays with you: {', '.join(plan.manifest.kept)}.")
    return [*lines, "No text, label or prediction of yours is among them.", ""]


def _company(plan: Plan, roster: Roster | None) -> list[str]:
    """With whom it is summed, and who must be honest."""
    if plan.masks == "off":
        return [*filled("WITHOUT MASKS: the server sees every one of these numbers of yours."), ""]
    thresholds = plan.masks.thresholds
    names = "" if roster is None else f": {', '.join(each.name for each in roster.members)}"
    others = thresholds.owners - 1
    honest = others - thresholds.colluders
    are = "is" if honest == 1 else "are"
    return [
        *filled(
            f"They leave under masks. The server sees only sums over at least {thresholds.quorum} "
            f"of {thresholds.owners} owners{names}."
        ),
        *filled(
            f"That holds while {honest} of the {others} other owners {are} honest, whatever the "
            "server does. Owners who pool all that they sent can subtract it: if all others in a "
            "sum did so, they would see your numbers."
        ),
        *filled(
            "A sum can itself tell something, the more the fewer the owners: see 'What it "
            "protects' in the README."
        ),
        "",
    ]


def _otherwise(task: Task, publishes_scores: bool) -> list[str]:
    told = "your name, when you answered, the kind of an error, which rule of your policy refused"
    if publishes_scores:
        scores = ", ".join(metric.name for metric in METRICS[task])
        told += f", and in clear {scores} and size of your test data (`test`)"
    return filled(f"Beside that the coordinator learns {told}.")
