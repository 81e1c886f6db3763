"""What an owner permits: rules that refuse, each with the key of `policy.toml` behind it.

Whatever a server asks, it is answered only if every rule holds. A rule says in words what a plan
asks and what is allowed, so the same objects decide, explain a refusal, and show a plan line
by line before anybody approves it.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from blindmerge.errors import PolicyRefused, SignatureInvalid
from blindmerge.merge import Evidence
from blindmerge.plan import Plan
from blindmerge.secagg.graph import default_colluders
from blindmerge_client.config import Policy
from blindmerge_client.noise_rules import NOISE_RULES
from blindmerge_client.rule import Question, Rule

__all__ = ["Line", "Question", "Rule", "explain", "permit", "rules"]

_GRAMS = frozenset(Evidence) - {Evidence.FISHER}  # also what comes to be in later versions


class _Coordinators(Rule):
    key = "coordinators"
    change = "add the coordinator's name and public key to [coordinators], if you trust it"

    def asked(self, question: Question) -> str:
        try:
            return f"by {question.signed.verify(self.policy.members).name}"
        except SignatureInvalid:
            return "by a stranger"

    def allowed(self) -> str:
        return _any_of(sorted(self.policy.coordinators))

    def _holds(self, question: Question) -> bool:
        return self.asked(question) != "by a stranger"


class _Required(Rule):
    key = "require"
    change = "nothing: ask the coordinator for a plan with all of it"

    def asked(self, question: Question) -> str:
        return " and ".join(sorted(self._given(question))) or "no masks"

    def allowed(self) -> str:
        return f"only with {' and '.join(self.policy.require)}"

    def _holds(self, question: Question) -> bool:
        return set(self.policy.require) <= self._given(question)

    def _given(self, question: Question) -> set[str]:
        plan = question.plan
        given = set() if plan.masks == "off" else {"masks"}
        if plan.noise != "off":
            given |= {"noise", plan.noise.mode} - {"statistics"}
        return given


class _PinnedRoster(Rule):
    key = "roster"
    change = "roster = {asked}, after you compared the members with the other organisations"

    def asked(self, question: Question) -> str:
        masks = question.plan.masks
        return "no roster" if masks == "off" else f'"{masks.roster}"'

    def allowed(self) -> str:
        return f'"{self.policy.roster}"' if self.policy.roster else "none"

    def _holds(self, question: Question) -> bool:
        masks, roster = question.plan.masks, question.roster
        if masks == "off" or roster is None or self.policy.roster is None:
            return False
        return masks.roster == self.policy.roster == roster.sha256.hex()


class _BaseModels(Rule):
    key = "base_models"
    change = 'add "{asked}" to base_models'

    def asked(self, question: Question) -> str:
        return question.plan.base

    def allowed(self) -> str:
        return _any_of(self.policy.base_models)

    def _holds(self, question: Question) -> bool:
        return question.plan.base in self.policy.base_models


class _Methods(Rule):
    key = "methods"
    change = 'add "{asked}" to methods'

    def asked(self, question: Question) -> str:
        return next(iter(self._missing(question)), question.plan.method.name)

    def allowed(self) -> str:
        return _any_of(self.policy.methods)

    def _holds(self, question: Question) -> bool:
        return not self._missing(question)

    def _missing(self, question: Question) -> list[str]:
        method = question.plan.method
        # A share of Fisher merging sends what Fisher merging sends.
        names = [method.name, *(["fisher"] if Evidence.FISHER in method.needs else [])]
        return [name for name in names if name not in self.policy.methods]


class _Layers(Rule):
    """Gram matrices only of layers that a pattern names."""

    key = "layers"
    change = 'add a pattern to layers, such as "*" for all'

    def asked(self, question: Question) -> str:
        layers, others = _gram_layers(question.plan), self._others(question.plan)
        if not layers:
            return "no Gram matrices"
        return f"Gram matrices of {len(layers)} layers" + (
            f", {others[0]} among them" if others else ""
        )

    def allowed(self) -> str:
        return _any_of(self.policy.layers)

    def _holds(self, question: Question) -> bool:
        return not self._others(question.plan)

    def _others(self, plan: Plan) -> list[str]:
        return [
            layer
            for layer in _gram_layers(plan)
            if not any(fnmatchcase(layer, pattern) for pattern in self.policy.layers)
        ]


class _Embeddings(Rule):
    """More than the average of an embedding tells which words occur, and how often."""

    key = "embeddings"
    change = 'embeddings = "any", if the others may learn which words your texts hold'

    def asked(self, question: Question) -> str:
        return "average" if self._averaged(question.plan) else "statistics of words"

    def allowed(self) -> str:
        return self.policy.embeddings

    def _holds(self, question: Question) -> bool:
        return self.policy.embeddings == "any" or self._averaged(question.plan)

    def _averaged(self, plan: Plan) -> bool:
        grams = any("embedding" in layer for layer in _gram_layers(plan))
        informed = (name for block in plan.blocks for name in plan.method.informed(block))
        return not grams and not any("embedding" in name for name in informed)


class _LeastOwners(Rule):
    key = "least_owners"
    change = "lower least_owners (not below 3), or ask for a larger federation"

    def asked(self, question: Question) -> str:
        return f"a sum over at least {self._least(question.plan)}"

    def allowed(self) -> str:
        return f"at least {self.policy.least_owners}"

    def _holds(self, question: Question) -> bool:
        return self._least(question.plan) >= self.policy.least_owners

    def _least(self, plan: Plan) -> int:
        return 1 if plan.masks == "off" else plan.masks.thresholds.quorum


class _Colluders(Rule):
    key = "colluders"
    change = "set colluders to less, if you trust the others more"

    def asked(self, question: Question) -> str:
        return f"safe against {self._tolerated(question.plan)}"

    def allowed(self) -> str:
        if self.policy.colluders is None:
            return "against a third of the roster, a tenth above 100"
        return f"against at least {self.policy.colluders}"

    def _holds(self, question: Question) -> bool:
        masks, demanded = question.plan.masks, self.policy.colluders
        if demanded is None and masks != "off":
            demanded = default_colluders(masks.thresholds.owners)
        return self._tolerated(question.plan) >= (demanded or 1)

    def _tolerated(self, plan: Plan) -> int:
        return 0 if plan.masks == "off" else plan.masks.thresholds.colluders


class _LeastExamples(Rule):
    key = "least_examples"
    change = "lower least_examples, or bring more examples"
    about_data = True

    def asked(self, question: Question) -> str:
        return f"sums over {min(question.plan.examples, question.examples)} examples of yours"

    def allowed(self) -> str:
        return f"over at least {self.policy.least_examples}"

    def _holds(self, question: Question) -> bool:
        return min(question.plan.examples, question.examples) >= self.policy.least_examples


class _RowsFactor(Rule):
    """A Gram matrix of few rows says much about few texts."""

    key = "rows_factor"
    change = "lower rows_factor, or ask the coordinator for a larger one"

    def asked(self, question: Question) -> str:
        factor = self._factor(question.plan)
        return "no Gram matrices" if factor is None else f"{factor:g} rows per width of a layer"

    def allowed(self) -> str:
        return f"at least {self.policy.rows_factor:g}"

    def _holds(self, question: Question) -> bool:
        factor = self._factor(question.plan)
        return factor is None or factor >= self.policy.rows_factor

    def _factor(self, plan: Plan) -> float | None:
        factor = getattr(plan.method, "rows_factor", None)
        # A method of Gram matrices without such an option would merge from any number of rows.
        return 0.0 if factor is None and _gram_layers(plan) else factor


class _MaxJobs(Rule):
    """Sums of two jobs with almost the same owners differ by one owner."""

    key = "max_jobs"
    change = "raise max_jobs, if the owners of the jobs are the same or very different ones"
    about_data = True

    def asked(self, question: Question) -> str:
        return f"job {len(question.earlier) + 1} on the same examples"

    def allowed(self) -> str:
        return f"at most {self.policy.max_jobs}"

    def _holds(self, question: Question) -> bool:
        return len(question.earlier) < self.policy.max_jobs


class _Expires(Rule):
    key = "expires"
    change = "set expires to a later day, after you have read the policy again"

    def asked(self, question: Question) -> str:
        return f"on {_day(question.now)}"

    def allowed(self) -> str:
        return f"until {self.policy.expires}" if self.policy.expires else "never"

    def _holds(self, question: Question) -> bool:
        return self.policy.expires is not None and _day(question.now) <= self.policy.expires


# The signature first: what a stranger asks is not read any further.
_RULES: tuple[type[Rule], ...] = (
    _Coordinators,
    _Expires,
    _Required,
    _PinnedRoster,
    _BaseModels,
    _Methods,
    _Layers,
    _Embeddings,
    _LeastOwners,
    _Colluders,
    _LeastExamples,
    _RowsFactor,
    _MaxJobs,
    *NOISE_RULES,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One rule about one plan. refusal: None if it permits the plan."""

    key: str
    asked: str
    allowed: str
    refusal: PolicyRefused | None


def rules(policy: Policy) -> tuple[Rule, ...]:
    """Every rule, in the order in which they are asked."""
    return tuple(rule(policy) for rule in _RULES)


def permit(policy: Policy, question: Question) -> None:
    """Raises PolicyRefused for the first rule that does not hold."""
    for rule in rules(policy):
        rule.check(question)


def explain(policy: Policy, question: Question) -> tuple[Line, ...]:
    """What the plan asks and what the policy says, rule by rule."""
    return tuple(_line(rule, question) for rule in rules(policy))


def _line(rule: Rule, question: Question) -> Line:
    try:
        rule.check(question)
        refusal = None
    except PolicyRefused as error:
        refusal = error
    return Line(rule.key, rule.asked(question), rule.allowed(), refusal)


def _gram_layers(plan: Plan) -> list[str]:
    """Layers whose inputs enter a Gram matrix."""
    if not _GRAMS & plan.method.needs:
        return []
    groups = (group for block in plan.manifest.blocks for group in block.groups)
    return [layer.name for group in groups for layer in group.layers]


def _any_of(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _day(now: int) -> datetime.date:
    return datetime.datetime.fromtimestamp(now, datetime.UTC).date()
