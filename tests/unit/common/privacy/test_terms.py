"""Noise in a plan: what is refused before any work, and what the terms mean."""

from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from blindmerge.merge import METHODS
from blindmerge.plan import Plan
from blindmerge.privacy.accountant import epsilon_of, rho_of
from blindmerge.privacy.terms import REASONS, GramNoise, Noise, gram_groups
from support.plans import make_plan

Z, DELTA = 2.0, 1e-6
EPSILON = epsilon_of(rho_of(Z), DELTA)
GROUPS = len(gram_groups(make_plan().manifest))
GRAMS: dict[str, Any] = {"multiplier": Z, "clip": 10.0, "weights": (1.0,) * GROUPS, "bits": 20}
NOISE: dict[str, Any] = {
    "mode": "statistics",
    "epsilon": EPSILON,
    "delta": DELTA,
    "unit": "example",
    "unit_examples": 1,
    "grams": GRAMS,
}


def noised(noise: dict[str, Any] | None = None, **changes: Any) -> Plan:
    return make_plan(noise=NOISE | (noise or {}), **changes)


def test_a_plan_with_noise_is_encoded_and_hashed() -> None:
    plan = noised()
    assert Plan.decode(plan.encode()) == plan
    changes: list[dict[str, Any]] = [
        {},
        {"mode": "end-to-end"},
        {"epsilon": EPSILON + 1},
        {"delta": 1e-5},
        {"unit": "person"},
        {"unit": "person", "unit_examples": 2},
        {"grams": GRAMS | {"multiplier": 2.5}},
        {"grams": GRAMS | {"clip": 11.0}},
        {"grams": GRAMS | {"weights": (*GRAMS["weights"][:-1], 0.0)}},
        {"grams": GRAMS | {"bits": 19}},
    ]
    hashes = {noised(change).sha256 for change in changes} | {make_plan().sha256}
    assert len(hashes) == len(changes) + 1


def test_the_table_has_every_method_and_refuses_with_its_reason() -> None:
    assert REASONS.keys() == METHODS.keys()
    for name, reason in REASONS.items():
        noise = {"grams": GRAMS if name == "regmean" else None}
        if reason is None:
            noised(noise, method={"name": name})
            continue
        with pytest.raises(ValidationError, match="cannot run with noise") as raised:
            noised(noise, method={"name": name})
        assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("noise", "plan", "message"),
    [
        ({"epsilon": -1.0}, {}, "epsilon"),
        ({"epsilon": 101.0}, {}, "epsilon"),
        ({"epsilon": float("nan")}, {}, "epsilon"),
        ({"delta": 0.0}, {}, "delta"),
        ({"delta": 1.0}, {}, "delta"),
        ({"delta": 1e-3}, {"examples": 1001}, "too large for 1001 examples"),
        ({"grams": GRAMS | {"clip": 0.0}}, {}, "clip"),
        ({"grams": GRAMS | {"multiplier": 0.0}}, {}, "multiplier"),
        ({"grams": GRAMS | {"weights": (1.0,)}}, {}, "one weight for each group"),
        ({"grams": GRAMS | {"weights": (0.0,) * GROUPS}}, {}, "no layer whose Gram matrix"),
        ({"grams": GRAMS | {"weights": (-1.0,) * GROUPS}}, {}, "weights"),
        ({"grams": None}, {}, "a method that sends them"),
        ({}, {"method": {"name": "average"}}, "a method that sends them"),
        ({}, {"method": {"name": "regmean", "weighting": "tokens"}}, "how many tokens"),
        ({}, {"method": {"name": "regmean", "fisher_share": 0.5}}, "no share of Fisher merging"),
        (
            {},
            {"method": {"name": "regmean", "shrinkage": "two-fold"}},
            "the halves are no releases",
        ),
        ({"unit_examples": 2}, {}, "one example"),
        ({"unit": "person", "unit_examples": 200}, {}, "cap of 25600 rows"),
        ({"epsilon": EPSILON * 0.999}, {}, "cost more than the epsilon"),
        ({}, {"examples": (1 << 24) + 1}, "added exactly"),
        ({"mode": "central"}, {}, "mode"),
        ({"surprise": 1}, {}, "surprise"),
    ],
    ids=str,
)
def test_bad_noise_is_refused(noise: dict[str, Any], plan: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        noised(noise, **plan)


def test_terms_of_the_mechanism_leave_out_groups_without_weight() -> None:
    plan = noised({"grams": GRAMS | {"weights": (0.0, *GRAMS["weights"][1:])}})
    assert isinstance(plan.noise, Noise)
    terms = plan.noise.terms(plan.manifest, plan.max_length)
    groups = gram_groups(plan.manifest)
    assert terms.groups.keys() == {group.name for group in groups[1:]}
    assert {name: group.width for name, group in terms.groups.items()} == {
        group.name: group.width for group in groups[1:]
    }
    assert (terms.clip, terms.multiplier, terms.most_rows, terms.bits) == (10.0, Z, 128, 20)


def test_the_average_has_nothing_to_pay_for() -> None:
    plan = noised({"grams": None, "epsilon": 0.0}, method={"name": "average"})
    assert isinstance(plan.noise, Noise)
    assert plan.noise.cost.rho == 0
    assert noised().noise.cost.rho == Fraction(rho_of(Z))  # type: ignore[union-attr]
    assert isinstance(GramNoise.model_validate(GRAMS), GramNoise)
