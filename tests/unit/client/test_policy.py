"""Every rule of a policy: what it refuses, with which words, and that nothing is the default."""

import datetime
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import pytest
from pydantic import ValidationError

from blindmerge.errors import PolicyRefused
from blindmerge.identity import Identity, Roster
from blindmerge.merge import METHODS
from blindmerge.plan import Plan
from blindmerge.privacy.accountant import epsilon_of, rho_of
from blindmerge.privacy.terms import gram_groups
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.config import Policy
from blindmerge_client.ledger import Book, Entry, subject_of
from blindmerge_client.policy import Question, explain, permit, rules
from blindmerge_client.statement import statement
from support.plans import make_masks, make_plan
from support.randomness import CounterRandomness
from support.secure_sum import identities

COORDINATOR = Identity.generate("uni", CounterRandomness("uni"))
STRANGER = Identity.generate("uni", CounterRandomness("stranger"))
ROSTER = Roster.of([each.member for each in identities(4)])
NOW = int(datetime.datetime(2027, 1, 31, 23, 59, tzinfo=datetime.UTC).timestamp())
DAY = 24 * 3600
PLAN = make_plan(masks=make_masks(4))
KEYS = [rule.key for rule in rules(Policy())]


def policy(**changes: Any) -> Policy:
    """One that allows `question()` and nothing more."""
    fields: dict[str, Any] = {
        "roster": ROSTER.sha256.hex(),
        "coordinators": {"uni": COORDINATOR.public.hex()},
        "base_models": (PLAN.base,),
        "methods": ("regmean",),
        "layers": ("bert.*", "classifier"),
        "least_owners": 3,
        "least_examples": 200,
        "max_jobs": 2,
        "expires": datetime.date(2027, 1, 31),
    }
    return Policy.model_validate(fields | changes)


def question(by: Identity = COORDINATOR, plan: Plan = PLAN, **facts: Any) -> Question:
    known: dict[str, Any] = {"roster": ROSTER, "examples": 200, "earlier": (ROSTER,), "now": NOW}
    return Question(SignedPlan.sign(plan, by), **(known | facts))


def planned(**changes: Any) -> Question:
    return question(plan=PLAN.model_copy(update=changes))


def with_method(**options: Any) -> Question:
    return question(plan=make_plan(masks=PLAN.masks, method=options))


NOISE = {
    "mode": "statistics",
    "epsilon": 3.0,
    "delta": 1e-6,
    "grams": {"multiplier": 2.0, "clip": 1.0, "weights": (1.0,) * len(gram_groups(PLAN.manifest))},
}
EPSILON = epsilon_of(rho_of(2.0), 1e-6)


def noised(noise: dict[str, Any] | None = None, **facts: Any) -> Question:
    known: dict[str, Any] = {"book": Book()}
    plan = make_plan(masks=PLAN.masks, noise=NOISE | (noise or {}))
    return question(plan=plan, **(known | facts))


def test_a_plan_with_noise_is_permitted_within_the_budget() -> None:
    for required in (("masks",), ("masks", "noise")):
        permit(policy(max_epsilon=EPSILON, require=required), noised())
    end_to_end = noised({"mode": "end-to-end"})
    permit(policy(max_epsilon=EPSILON, require=("masks", "noise", "end-to-end")), end_to_end)


def charged(subject: str, cost: float) -> Book:
    return Book((Entry(kind="charged", subject=subject, time=NOW, rho=cost),))


@pytest.mark.parametrize(
    ("changes", "asked", "key"),
    [
        ({}, noised(), "max_epsilon"),
        ({"max_epsilon": EPSILON * 0.999}, noised(), "max_epsilon"),
        ({"max_epsilon": EPSILON}, noised(book=charged("other:1", 0.01)), "max_epsilon"),
        ({"max_epsilon": 9.0}, noised(book=None), "max_epsilon"),
        ({"max_epsilon": 9.0, "least_noise": 2.1}, noised(), "least_noise"),
        ({"max_epsilon": 9.0, "delta": 1e-7}, noised(), "delta"),
        ({"require": ("masks", "noise")}, question(), "require"),
        ({"max_epsilon": 9.0, "require": ("masks", "end-to-end")}, noised(), "require"),
    ],
)
def test_noise_that_is_too_weak_or_too_dear_is_refused(
    changes: dict[str, Any], asked: Question, key: str
) -> None:
    with pytest.raises(PolicyRefused, match=f"rule '{key}'") as raised:
        permit(policy(**changes), asked)
    assert "in policy.toml" in raised.value.hint
    assert [line.key for line in explain(policy(**changes), asked) if line.refusal] == [key]


def test_a_job_is_not_charged_twice() -> None:
    """A retry, after the release was charged, is within the same budget."""
    asked = noised()
    book = charged(subject_of(asked.plan), rho_of(2.0))
    permit(policy(max_epsilon=EPSILON), noised(book=book))


def test_masks_cannot_be_left_out_of_what_is_required() -> None:
    with pytest.raises(ValidationError, match="masks"):
        policy(require=("noise",))


def test_what_is_allowed_is_permitted() -> None:
    permit(policy(), question())
    assert all(line.refusal is None for line in explain(policy(), question()))


def test_an_empty_policy_permits_nothing() -> None:
    refused = {line.key for line in explain(Policy(), question()) if line.refusal}
    assert refused >= {"coordinators", "expires", "roster", "base_models", "methods", "layers"}
    with pytest.raises(PolicyRefused):
        permit(Policy(), question())


# By rule: one step over what is allowed, on the plan's side and on the policy's.
OVER: Mapping[str, tuple[tuple[Policy, Question], ...]] = {
    "coordinators": ((policy(), question(STRANGER)), (policy(coordinators={}), question())),
    "expires": ((policy(), question(now=NOW + DAY)), (policy(expires=None), question())),
    "require": (
        (policy(), planned(masks="off")),
        (policy(require=("masks", "noise")), question()),
        (policy(require=("masks", "end-to-end"), max_epsilon=9.0), noised()),
    ),
    "delta": ((policy(max_epsilon=9.0, delta=1e-7), noised()),),
    "least_noise": ((policy(max_epsilon=9.0, least_noise=2.1), noised()),),
    "max_epsilon": (
        (policy(max_epsilon=2.0), noised()),
        (policy(max_epsilon=9.0), noised(book=None)),
    ),
    "roster": (
        (policy(), planned(masks=make_masks(5))),
        (policy(), question(roster=None)),
        (policy(roster=None), question()),
        (policy(roster="0" * 64), question()),
    ),
    "base_models": ((policy(), planned(base="0" * 64)), (policy(base_models=()), question())),
    "methods": (
        (policy(methods=("average",)), question()),
        (policy(), with_method(name="ties")),
        (policy(methods=("regmean",)), with_method(name="regmean", fisher_share=0.1)),
    ),
    "layers": ((policy(layers=("bert.*",)), question()), (policy(layers=()), question())),
    "embeddings": ((policy(methods=("fisher",)), with_method(name="fisher")),),
    "least_owners": ((policy(least_owners=4), question()),),
    "colluders": (
        (policy(colluders=2), question()),
        (policy(), planned(masks=make_masks(10, colluders=2))),
    ),
    "least_examples": ((policy(), question(examples=199)), (policy(), planned(examples=199))),
    "rows_factor": (
        (policy(), with_method(name="regmean", rows_factor=3.9)),
        (policy(rows_factor=4.1), question()),
    ),
    "max_jobs": ((policy(), question(earlier=(ROSTER, ROSTER))), (policy(max_jobs=1), question())),
}


def test_every_rule_is_tested() -> None:
    assert sorted(OVER) == sorted(KEYS)
    assert set(KEYS) <= set(Policy.model_fields)


@pytest.mark.parametrize("key", KEYS)
def test_a_rule_refuses_names_itself_and_says_what_to_change(key: str) -> None:
    for allowed, asked in OVER[key]:
        rule = next(rule for rule in rules(allowed) if rule.key == key)
        with pytest.raises(PolicyRefused) as caught:
            rule.check(asked)
        assert caught.value.message.startswith(f"rule '{key}': asked {rule.asked(asked)}; allowed")
        assert caught.value.hint.startswith("in policy.toml: ")
        with pytest.raises(PolicyRefused):
            permit(allowed, asked)


def test_methods_without_gram_matrices_need_no_rows_and_no_layers() -> None:
    allowed = policy(methods=("average", "task-arithmetic", "ties"), layers=())
    for name in allowed.methods:
        permit(allowed, with_method(name=name))


def test_a_share_of_fisher_merging_says_nothing_of_words() -> None:
    permit(policy(methods=("regmean", "fisher")), with_method(name="regmean", fisher_share=0.1))


SENDS_GRAMS = [
    name
    for name in METHODS
    if any(":gram" in sent for sent in with_method(name=name).plan.method.schema_of(PLAN.blocks[1]))
]


def test_methods_that_send_gram_matrices_are_known_by_what_they_send() -> None:
    assert {"regmean", "regmean++", "progressive"} <= set(SENDS_GRAMS) < set(METHODS)


@pytest.mark.parametrize("method", SENDS_GRAMS)
def test_a_method_that_sends_gram_matrices_needs_layers_and_rows(method: str) -> None:
    asked = with_method(name=method)
    permit(policy(methods=(method,)), asked)
    with pytest.raises(PolicyRefused, match="rule 'layers'"):
        permit(policy(methods=(method,), layers=("bert.*",)), asked)
    with pytest.raises(PolicyRefused, match="rule 'rows_factor'"):
        permit(policy(methods=(method,)), with_method(name=method, rows_factor=3.9))


@pytest.mark.parametrize("method", METHODS)
def test_all_that_a_method_sends_has_words(method: str) -> None:
    variants: list[dict[str, Any]] = [{}]
    if method in SENDS_GRAMS:
        variants += [{"shrinkage": "two-fold"}, {"fisher_share": 0.5}]
    for options in variants:
        for line in statement(with_method(name=method, **options).plan, ROSTER, False):
            if " bytes  " in line:
                assert " " in line.partition(" x ")[2].strip(), line


def test_a_method_is_allowed_with_its_words() -> None:
    permit(policy(methods=("fisher",), embeddings="any"), with_method(name="fisher"))


def test_a_stranger_is_refused_first() -> None:
    with pytest.raises(PolicyRefused, match="'coordinators': asked by a stranger; allowed uni"):
        permit(Policy(coordinators={"uni": COORDINATOR.public.hex()}), question(STRANGER))


def test_the_last_day_is_allowed() -> None:
    permit(policy(), question(now=NOW - 30 * DAY))
    permit(policy(), question(now=NOW + 59))
    with pytest.raises(PolicyRefused, match="2027-02-01"):
        permit(policy(), question(now=NOW + 60))


def test_the_statement_counts_what_the_schema_counts() -> None:
    schemas = [PLAN.method.schema_of(block) for block in PLAN.blocks]
    size = 8 * sum(prod(shape) for schema in schemas for shape in schema.values())
    text = "\n".join(statement(PLAN, ROSTER, publishes_scores=False))
    assert f"{sum(map(len, schemas))} tensors" in text
    assert f"{size:,} bytes in all" in text
    listed = [line.split()[0] for line in text.splitlines() if " bytes  " in line]
    assert sum(int(each.replace(",", "")) for each in listed) == size
    assert max(map(len, text.splitlines())) <= 80
    assert "1,000 of your training examples" in " ".join(text.split())


def test_the_statement_names_the_others_and_how_many_must_be_honest() -> None:
    text = " ".join(statement(PLAN, ROSTER, publishes_scores=False))
    assert "at least 3 of 4 owners: org-000, org-001, org-002, org-003" in text
    assert "while 2 of the 3 other owners are honest" in text
    assert "accuracy" not in text
    assert "accuracy" in " ".join(statement(PLAN, None, publishes_scores=True))


def test_narrow_numbers_are_fewer_bytes() -> None:
    wide, narrow = (
        " ".join(statement(replace_masks(bits), ROSTER, publishes_scores=False))
        for bits in (64, 48)
    )
    sizes = [int(text.split(", ")[1].split()[0].replace(",", "")) for text in (wide, narrow)]
    assert sizes[1] * 8 == sizes[0] * 6


def replace_masks(bits: int) -> Plan:
    return make_plan(masks=make_masks(4, bits=bits))


def test_the_statement_says_that_a_head_that_is_kept_stays() -> None:
    heads = PLAN.model_copy(update={"manifest": PLAN.manifest.with_head_kept, "labels": ()})
    stays = "Your model's head stays with you: "
    (line,) = (each for each in statement(heads, ROSTER, False) if each.startswith(stays))
    assert set(line.removeprefix(stays).rstrip(".,").split(", ")) <= set(heads.manifest.kept)
    assert not any(each.startswith(stays) for each in statement(PLAN, ROSTER, False))


def test_the_statement_warns_of_a_plan_without_masks() -> None:
    assert any("WITHOUT MASKS" in line for line in statement(make_plan(), None, False))


def test_a_refusal_about_data_is_not_for_the_coordinator() -> None:
    told = {line.key: line.refusal.told for line in explain(Policy(), question()) if line.refusal}
    assert told["methods"] == "rule 'methods' of its policy"
    with pytest.raises(PolicyRefused) as caught:
        permit(policy(), question(examples=199))
    assert caught.value.told == ""
    with pytest.raises(PolicyRefused) as caught:
        permit(policy(max_jobs=1), question())
    assert caught.value.told == ""


def test_a_question_is_a_value() -> None:
    assert replace(question(), now=3) == question(now=3)
