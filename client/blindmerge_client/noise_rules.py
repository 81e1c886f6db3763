"""The rules of an owner's policy about noise, and what it may cost."""

from blindmerge.plan import Plan
from blindmerge.privacy.accountant import Cost
from blindmerge_client.ledger import Book, subject_of
from blindmerge_client.rule import Question, Rule

__all__ = ["NOISE_RULES"]


class _LeastNoise(Rule):
    """How much noise statistics have per clip."""

    key = "least_noise"
    change = "lower least_noise, or ask the coordinator for more noise"

    def asked(self, question: Question) -> str:
        found = self._multiplier(question.plan)
        return "no statistics with noise" if found is None else f"{found:.3g} per clip"

    def allowed(self) -> str:
        return f"at least {self.policy.least_noise:g}"

    def _holds(self, question: Question) -> bool:
        found = self._multiplier(question.plan)
        return found is None or found >= self.policy.least_noise

    def _multiplier(self, plan: Plan) -> float | None:
        if plan.noise == "off" or plan.noise.grams is None:
            return None
        return plan.noise.grams.multiplier


class _Delta(Rule):
    """At which delta a plan promises its epsilon."""

    key = "delta"
    change = "raise delta, if it stays far below 1 / examples"

    def asked(self, question: Question) -> str:
        noise = question.plan.noise
        return "none" if noise == "off" else f"{noise.delta:g}"

    def allowed(self) -> str:
        return f"at most {self.policy.delta:g}"

    def _holds(self, question: Question) -> bool:
        noise = question.plan.noise
        return noise == "off" or noise.delta <= self.policy.delta


class _MaxEpsilon(Rule):
    """What all jobs on the same examples cost together, as their ledger has it.

    A ledger is opened by a person: one that went missing must not be replaced by itself.
    """

    key = "max_epsilon"
    change = (
        "raise max_epsilon, ask for more noise, or use other examples; their ledger is opened with "
        "`blindmerge client ledger open`"
    )

    def asked(self, question: Question) -> str:
        if question.plan.noise == "off":
            return "nothing is charged"
        if question.book is None:
            return "a charge to a ledger of these examples, which nobody opened"
        spent = self._spent(question.book, question).epsilon(self.policy.delta)
        after = self._after(question.book, question)
        return f"epsilon {after:.3g} in all, of which {spent:.3g} is spent"

    def allowed(self) -> str:
        return f"{self.policy.max_epsilon:g} at delta {self.policy.delta:g}"

    def _holds(self, question: Question) -> bool:
        if question.plan.noise == "off":
            return True
        book = question.book
        return book is not None and self._after(book, question) <= self.policy.max_epsilon

    def _after(self, book: Book, question: Question) -> float:
        noise = question.plan.noise
        cost = Cost() if noise == "off" else noise.cost
        return (self._spent(book, question) + cost).epsilon(self.policy.delta)

    def _spent(self, book: Book, question: Question) -> Cost:
        """By others: what this job was charged before, it is not charged again."""
        return book.spent_but_for(subject_of(question.plan))


NOISE_RULES: tuple[type[Rule], ...] = (_Delta, _LeastNoise, _MaxEpsilon)
"""In the order in which they are asked."""
