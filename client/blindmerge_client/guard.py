"""Between the courier and the owner: every request is checked, allowed or refused here.

A guard holds the data, the keys and the policy. A request is answered only if the plan is signed
by a pinned coordinator, every rule of the policy holds *now*, and a person approved the job
or the policy says that none needs to. Nothing that a server or courier sends can approve a job.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from blindmerge.checkpoint import Checkpoint, Tensors
from blindmerge.errors import ApprovalNeeded, PolicyRefused
from blindmerge.identity import Roster
from blindmerge.plan import Plan
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.config import Home, Policy
from blindmerge_client.data import Examples, read_examples
from blindmerge_client.jobs import Jobs
from blindmerge_client.owner import Owner
from blindmerge_client.policy import Question, permit
from blindmerge_client.seat import Membership

__all__ = ["Guard"]


class Guard:
    """Answers for the organisation whose folder this is; data are read once, here.

    say: shows a person what is answered.
    Raises ConfigInvalid, CheckpointInvalid or DataInvalid if something of the files is wrong.
    """

    def __init__(self, home: Home, say: Callable[[str], None] = lambda _: None) -> None:
        client = home.client()
        self._say = say
        client.check(home.client_file)
        self.name = client.name
        self._home, self._client = home, client
        self._identity = home.identity(client.name)
        self._base = Checkpoint(client.base)
        self._train = self._examples(client.train)
        self._test = None if client.test is None else self._examples(client.test)
        self._jobs = Jobs(home.jobs)
        self._told: set[str] = set()
        self._owner: Owner | None = None
        self._membership: Membership | None = None
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
        owner = self._admit(signed)
        self._say(f"job '{signed.plan.job}': {_step(signed.plan, block, messages)}")
        return owner.answer(signed.plan, block, messages)

    def receive(self, signed: SignedPlan, merged: Tensors) -> None:
        """Keeps merged tensors.   Raises PolicyRefused, and what `Owner.receive` does."""
        owner = self._admit(signed)
        self._say(f"job '{signed.plan.job}': {len(merged)} merged tensors came")
        owner.receive(signed.plan, merged)

    def evaluate(self, signed: SignedPlan) -> Mapping[str, float]:
        """Ends the job; the scores that are published.   Raises as `receive` does."""
        scores = self._admit(signed).evaluate(signed.plan)
        if self._jobs.ask(signed, self._train.sha256).state == "running":
            self._jobs.move(signed.plan, "done")
        return scores

    def _admit(self, signed: SignedPlan) -> Owner:
        """The owner, if it may answer.   Raises PolicyRefused, ApprovalNeeded, ConfigInvalid."""
        policy = self._home.policy()
        roster = self._home.roster(policy.roster) if policy.roster else None
        others = self._jobs.others(signed.plan, self._train.sha256)
        question = Question(signed, roster, len(self._train), others, int(time.time()))
        permit(policy, question)
        self._approve(policy, signed)
        if roster is None:
            raise AssertionError("the policy permitted a plan without a pinned roster")
        return self._owner_with(policy, roster)

    def _approve(self, policy: Policy, signed: SignedPlan) -> None:
        job = self._jobs.ask(signed, self._train.sha256)
        if job.state == "asked" and policy.approve == "automatic":
            job = self._jobs.move(signed.plan, "approved")
        if job.state == "asked":
            name = signed.plan.job
            hint = f"blindmerge client approve {self._home.folder} {name}"
            if name not in self._told:
                self._say(f"job '{name}' waits for approval: {hint}")
                self._told.add(name)
            raise ApprovalNeeded(f"job '{name}' waits for approval", hint=hint)
        if job.state == "refused":
            raise PolicyRefused(f"this organisation refused job '{signed.plan.job}'")
        if job.state == "approved":
            self._jobs.move(signed.plan, "running")

    def _owner_with(self, policy: Policy, roster: Roster) -> Owner:
        """One object while the policy stays, so that its model stays in memory."""
        membership = Membership(
            self._identity, roster, policy.least_owners, policy.colluders, policy.max_attempts
        )
        if self._owner is None or membership != self._membership:
            client = self._client
            self._membership = membership
            self._owner = Owner(
                self.name,
                client.base,
                client.model,
                self._train,
                self._home.jobs,
                membership,
                self._test,
            )
        return self._owner

    def _examples(self, path: Path) -> Examples:
        return read_examples(path, self._base.labels, self._base.task)


def _step(plan: Plan, block: int | None, messages: Sequence[bytes]) -> str:
    """What is answered, for the log."""
    if block is None or not 0 <= block < len(plan.blocks):
        return f"{len(messages)} messages of the secure sum"
    return f"masked input of {plan.blocks[block].name} ({block + 1} of {len(plan.blocks)})"
