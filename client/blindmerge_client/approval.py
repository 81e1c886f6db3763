"""What a person needs to know before a job is approved."""

import time
from collections.abc import Sequence
from pathlib import Path

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import BlindmergeError, ConfigInvalid
from blindmerge.identity import Roster
from blindmerge.plan import Plan
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.adapters import labels_of
from blindmerge_client.config import Home
from blindmerge_client.data import read_examples
from blindmerge_client.differencing import reason_to_ask
from blindmerge_client.jobs import Jobs
from blindmerge_client.policy import Question
from blindmerge_client.statement import filled, statement

__all__ = ["read_question", "read_statement"]

_PLAN_BYTES = 1 << 26


def read_question(home: Home, file: Path) -> Question:
    """A plan from a file, with all that the policy's rules ask about.

    Raises ConfigInvalid if the file is no plan, and what reading the owner's data raises.
    """
    with file.open("rb") as stream:
        data = stream.read(_PLAN_BYTES)
    try:
        signed = SignedPlan.decode(data)
    except BlindmergeError as error:
        raise ConfigInvalid(
            f"'{file}' is no signed plan: {error.message}",
            hint="ask the coordinator for the file that `blindmerge server plan` wrote",
        ) from error
    client = home.client()
    client.check(home.client_file)
    base = Checkpoint(client.base)
    labels = labels_of(client.model, client.base)
    train = read_examples(client.train, labels, base.task)
    earlier = Jobs(home.jobs).earlier(signed.plan, train.sha256)
    return Question(
        signed, _roster(home), len(train), earlier, int(time.time()), home.book(train.account)
    )


def read_statement(
    home: Home, plan: Plan, roster: Roster | None, earlier: Sequence[Roster]
) -> tuple[str, ...]:
    """What will leave the machine, in plain words, in lines of at most 80 characters.

    roster: of the plan; None if the owner has another.   earlier: see `reason_to_ask`.
    """
    lines = statement(plan, roster, home.client().test is not None)
    why = None if roster is None else reason_to_ask(home.policy().least_owners, roster, earlier)
    return lines if why is None else (*lines, "", *filled(why))


def _roster(home: Home) -> Roster | None:
    pinned = home.policy().roster
    return home.roster(pinned) if pinned else None
