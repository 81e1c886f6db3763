"""What a rule of an owner's policy is, and the question that it answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from blindmerge.errors import PolicyRefused
from blindmerge.identity import Roster
from blindmerge.plan import Plan
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.config import Policy
from blindmerge_client.ledger import Book

__all__ = ["Question", "Rule"]


@dataclass(frozen=True, slots=True)
class Question:
    """A plan that somebody asks this owner to take part in, and what the rules know beside it.

    roster: the one in the owner's folder; None without.
    examples: how many training examples there are.
    earlier: rosters of other jobs that these examples were used for.   now: Unix time in seconds.
    book: the ledger of these examples; None if nobody opened one.
    """

    signed: SignedPlan
    roster: Roster | None
    examples: int
    earlier: tuple[Roster, ...]
    now: int
    book: Book | None = None

    @property
    def plan(self) -> Plan:
        """What is asked."""
        return self.signed.plan


@dataclass(frozen=True)
class Rule(ABC):
    """One rule, with what `policy.toml` says about it."""

    policy: Policy
    key: ClassVar[str]
    """The key of `policy.toml`."""
    change: ClassVar[str]
    """What would allow it; `{asked}` is what the plan asks."""
    about_data: ClassVar[bool] = False
    """Whether a refusal says something of the owner's data: then no coordinator hears of it."""

    @abstractmethod
    def asked(self, question: Question) -> str:
        """What the plan asks, in words."""

    @abstractmethod
    def allowed(self) -> str:
        """What the policy says, in words."""

    @abstractmethod
    def _holds(self, question: Question) -> bool: ...

    def check(self, question: Question) -> None:
        """Raises PolicyRefused with what was asked, what is allowed, and how to allow it."""
        if not self._holds(question):
            asked = self.asked(question)
            raise PolicyRefused(
                f"rule '{self.key}': asked {asked}; allowed {self.allowed()}",
                hint=f"in policy.toml: {self.change.format(asked=asked)}",
                told="" if self.about_data else f"rule '{self.key}' of its policy",
            )
