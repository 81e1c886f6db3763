"""The order of a job: rounds, the rides of later sums, and deliveries."""

from math import prod

import pytest

from blindmerge.merge import METHODS
from blindmerge.plan import Plan
from blindmerge_server.exchanges import Exchange, Kind, exchanges
from support.plans import make_masks, make_plan

ONE_SHOT = [name for name, method in METHODS.items() if not method.progressive]


def masked(method: str, **options: float) -> Plan:
    return make_plan(method={"name": method, **options}, masks=make_masks(4))


@pytest.mark.parametrize("method", ONE_SHOT)
def test_a_one_shot_method_takes_four_rounds_and_one_for_each_block(method: str) -> None:
    steps, last = exchanges(masked(method))
    assert steps == (
        Exchange(Kind.ADVERTISE, 0),
        Exchange(Kind.SHARE, 0),
        *(Exchange(Kind.MASKED_INPUT, 0, block) for block in range(4)),
        Exchange(Kind.CONSISTENCY, 0),
        Exchange(Kind.UNMASK, 0),
    )
    assert last == (0, 1, 2, 3)


def test_a_progressive_method_takes_two_rounds_and_three_for_each_sum() -> None:
    plan = masked("progressive")
    steps, last = exchanges(plan)
    count = len(plan.phases)
    assert len(steps) == 2 + 3 * count
    assert steps[:2] == (Exchange(Kind.ADVERTISE, 0), Exchange(Kind.SHARE, 0))
    for phase in range(count):
        # The key rounds of the next sum ride on the last two of this one: no exchanges of their
        # own. What was merged last goes with the question for the next part.
        assert steps[2 + 3 * phase : 5 + 3 * phase] == (
            Exchange(Kind.MASKED_INPUT, phase, phase, (phase - 1,) if phase else ()),
            Exchange(Kind.CONSISTENCY, phase),
            Exchange(Kind.UNMASK, phase),
        )
    assert last == (count - 1,)


@pytest.mark.parametrize("method", METHODS)
def test_without_masks_there_is_one_exchange_for_each_block(method: str) -> None:
    plan = make_plan(method={"name": method})
    steps, _ = exchanges(plan)
    assert [step.kind for step in steps] == [Kind.STATISTIC] * len(plan.blocks)
    assert [step.block for step in steps] == list(range(len(plan.blocks)))


@pytest.mark.parametrize("limit", [1, 500, 2000, 1 << 40])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_block_is_delivered_once_when_it_is_known(
    method: str, masks: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindmerge_server.exchanges._DELIVERY_BYTES", limit)
    plan = masked(method) if masks else make_plan(method={"name": method})
    steps, last = exchanges(plan)
    delivered = [block for step in steps for block in step.deliver] + list(last)
    assert delivered == list(range(len(plan.blocks)))
    ends = Kind.UNMASK if masks else Kind.STATISTIC
    for place, step in enumerate(steps):
        known = [
            block
            for phase, blocks in enumerate(plan.phases)
            if any((before.kind, before.phase) == (ends, phase) for before in steps[:place])
            for block in blocks
        ]
        assert set(step.deliver) <= set(known)


def test_what_a_method_revises_is_delivered_again_after_the_last_sum() -> None:
    plan = masked("progressive", fisher_share=0.25)
    steps, last = exchanges(plan)
    count = len(plan.blocks)
    assert [block for step in steps for block in step.deliver] == list(range(count - 1))
    assert last == tuple(range(count))


# The blocks have 1600, 2128, 2128 and 396 bytes as float32.
@pytest.mark.parametrize(
    ("limit", "messages"), [(1, 4), (3000, 3), (5000, 2), (6252, 2), (6253, 1)]
)
def test_a_message_is_no_larger_than_the_limit_and_one_block(
    limit: int, messages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindmerge_server.exchanges._DELIVERY_BYTES", limit)
    plan = masked("average")
    steps, last = exchanges(plan)
    portions = [step.deliver for step in steps if step.kind is Kind.DELIVERY] + [last]
    assert len(portions) == messages
    for portion in portions:
        sizes = [sum(4 * prod(s) for s in plan.blocks[block].shapes.values()) for block in portion]
        assert sum(sizes[1:]) < limit


def test_a_model_below_256_mib_is_one_message() -> None:
    steps, _ = exchanges(masked("average"))
    assert Kind.DELIVERY not in {step.kind for step in steps}
