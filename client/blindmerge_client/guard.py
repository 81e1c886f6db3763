"""Between the courier and the owner: every request is checked, allowed or refused here.

A guard holds the data, the keys and the policy. A request is answered only if the plan is signed
by a pinned coordinator, every rule of the policy holds *now*, and a person approved the job
or the policy says that none needs to. Nothing that a server or courier sends can approve a job.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from blindmerge.checkpoint import Checkpoint, Tensors
from blindmerge.errors import ApprovalNeeded, BlindmergeError, PolicyRefused
from blindmerge.identity import Roster
from blindmerge.plan import Plan
from blindmerge.secagg.messages import kind_of
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.adapters import labels_of
from blindmerge_client.config import Home, Policy
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.differencing import reason_to_ask
from blindmerge_client.jobs import Jobs
from blindmerge_client.ledger import Budget
from blindmerge_client.noise import Account
from blindmerge_client.owner import Owner
from blindmerge_client.persons import read_persons
from blindmerge_client.policy import Question, permit
from blindmerge_client.progress import Watch, unwatched
from blindmerge_client.seat import Membership

__all__ = ["Guard"]

_log = logging.getLogger("blindmerge.client")


class Guard:
    """Answers for the organisation whose folder this is; data are read once, here.

    say: shows a person what is answered.   watch: shows how far work on all texts is.
    Raises ConfigInvalid, CheckpointInvalid or DataInvalid if something of the files is wrong.
    """

    def __init__(
        self,
        home: Home,
        say: Callable[[str], None] = lambda _: None,
        watch: Watch = unwatched,
    ) -> None:
        client = home.client()
        self._say, self._watch = say, watch
        client.check(home.client_file)
        self.name = client.name
        self._home, self._client = home, client
        self._identity = home.identity(client.name)
        self._base = Checkpoint(client.base)
        self._train = self._examples(client.train)
        self._test = None if client.test is None else self._examples(client.test)
        self._jobs = Jobs(home.jobs)
        self._said = ""
        self._owner: Owner | None = None
        self._membership: Membership | None = None
        self._budget: Budget | None = None
        home.policy()  # its mistakes should be told now, not at the first request

    @property
    def largest_delivery(self) -> int:
        """Bytes that all merged tensors together may have."""
        shapes = self._base.manifest.shapes
        return 8 * sum(prod(shape) for shape in shapes.values())

    def answer(
        self, signed: SignedPlan, block: int | None, messages: Sequence[bytes]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """What this owner sends (see `Owner.answer`).   Raises PolicyRefused, and what it does."""
        owner, plan = self._admit(signed), signed.plan
        step = _step(plan, block, messages)
        if block is not None:  # reading all the examples takes a while
            self._say(f"{plan.job}: {step} ...")
        began_s = time.monotonic()
        arrays = owner.answer(plan, block, messages)
        sent = sum(array.nbytes for array in arrays.values())
        if arrays:
            self._tell(plan, f"{step}: {sent:,} bytes leave, {time.monotonic() - began_s:.1f} s")
        return arrays

    def receive(self, signed: SignedPlan, merged: Tensors) -> None:
        """Keeps merged tensors.   Raises PolicyRefused, and what `Owner.receive` does."""
        self._admit(signed).receive(signed.plan, merged)
        self._tell(signed.plan, f"{len(merged)} merged tensors came")

    def evaluate(self, signed: SignedPlan) -> Mapping[str, float]:
        """Ends the job; the scores that are published.   Raises as `receive` does."""
        owner, plan = self._admit(signed), signed.plan
        scores = owner.evaluate(plan)
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        self._tell(plan, f"the merged model is complete; scores that leave: {told or 'none'}")
        self._jobs.finish(plan)
        return scores

    def _admit(self, signed: SignedPlan) -> Owner:
        """The owner, if it may answer.   Raises PolicyRefused, ApprovalNeeded, ConfigInvalid."""
        try:
            policy = self._home.policy()
            roster = self._home.roster(policy.roster) if policy.roster else None
            now = int(time.time())
            self._jobs.check_clock(now)
            earlier = self._jobs.earlier(signed.plan, self._train.sha256)
            book = self._home.book(self._train.account)
            permit(policy, Question(signed, roster, len(self._train), earlier, now, book))
            if roster is None:
                raise AssertionError("the policy permitted a plan without a pinned roster")
            self._approve(policy, signed, roster, earlier)
        except ApprovalNeeded as error:
            self._say_once(f"{error.message}\n  {error.hint}")
            raise
        except BlindmergeError as error:
            self._say_once(f"{signed.plan.job}: no. {error.message}\n  {error.hint}".rstrip())
            raise
        return self._owner_with(policy, roster)

    def _approve(
        self, policy: Policy, signed: SignedPlan, roster: Roster, earlier: Sequence[Roster]
    ) -> None:
        plan, job = signed.plan, self._jobs.ask(signed, roster, self._train.sha256)
        automatic = policy.approve == "automatic" and not reason_to_ask(
            policy.least_owners, roster, earlier
        )
        if job.state == "asked" and automatic:
            job = self._jobs.move(plan, "approved")
        if job.state == "asked":
            raise ApprovalNeeded(
                f"job '{plan.job}' waits for a person's approval",
                hint=f"blindmerge client approve {self._home.folder} {plan.job}",
            )
        if job.state == "refused":
            raise PolicyRefused(
                f"job '{plan.job}' is refused",
                hint=f"blindmerge client approve {self._home.folder} {plan.job} allows it",
                told="a person refused the job",
            )
        if job.state == "approved":
            self._jobs.move(plan, "running")

    def _tell(self, plan: Plan, what: str) -> None:
        """What left or came, for the person who watches and the log that is kept."""
        self._say(f"{plan.job}: {what}")
        _log.info("job %s (plan %s): %s", plan.job, plan.sha256, what)

    def _say_once(self, line: str) -> None:
        """A coordinator asks again every few seconds."""
        if line != self._said:
            self._say(line)
            self._said = line

    def _owner_with(self, policy: Policy, roster: Roster) -> Owner:
        """One object while the policy stays, so that its model stays in memory."""
        membership = Membership(
            self._identity, roster, policy.least_owners, policy.colluders, policy.max_attempts
        )
        budget = Budget(policy.max_epsilon, policy.delta)
        if self._owner is None or (membership, budget) != (self._membership, self._budget):
            client, dataset = self._client, self._train.account
            self._membership, self._budget = membership, budget
            persons = read_persons(client.train, self._base.task)
            account = Account(self._home.ledger(dataset), dataset, budget, persons)
            self._owner = Owner(
                self.name,
                client.base,
                client.model,
                self._train,
                self._home.jobs,
                membership,
                self._test,
                account,
                self._watch,
            )
        return self._owner

    def _examples(self, path: Path) -> Examples:
        labels = labels_of(self._client.model, self._client.base)
        return read_examples(path, labels, self._base.task)


_STEPS = {
    "propose": "fresh keys for a secure sum",
    "adverts": "sealed shares for the others",
    "survivors": "signature of who is in the sum",
    "consents": "shares that open the sum",
}
"""What is answered to a message, by its kind."""


def _step(plan: Plan, block: int | None, messages: Sequence[bytes]) -> str:
    """What is answered, for a person."""
    if block is not None and 0 <= block < len(plan.blocks):
        return f"masked input {block + 1} of {len(plan.blocks)}, {plan.blocks[block].name}"
    kinds = [kind_of(data) for data in messages]
    return ", ".join(_STEPS.get(kind or "", "a refusal") for kind in kinds) or "nothing"
