"""A person is asked when a job is with almost the same owners as one before."""

import pytest

from blindmerge.identity import Identity, Roster
from blindmerge_client.differencing import reason_to_ask
from support.randomness import CounterRandomness
from support.secure_sum import identities


def roster_of(*numbers: int) -> Roster:
    members = [each.member for each in identities(9)]
    return Roster.of([members[number] for number in numbers])


@pytest.mark.parametrize(
    ("earlier", "asks"),
    [
        ([], False),
        ([(0, 1, 2, 3)], False),  # the same owners: nothing to subtract
        ([(0, 1, 2)], True),  # one came
        ([(0, 1, 2, 3, 4)], True),  # one went
        ([(0, 1, 2, 4)], True),  # one came for another
        ([(0, 1, 2, 3, 4, 5, 6)], False),  # three went: a sum over three, as the policy allows
        ([(4, 5, 6, 7, 8)], False),
        ([(4, 5, 6, 7, 8), (0, 1, 2)], True),
    ],
)
def test_a_person_is_asked_when_few_came_or_went(
    earlier: list[tuple[int, ...]], asks: bool
) -> None:
    before = [roster_of(*numbers) for numbers in earlier]
    why = reason_to_ask(3, roster_of(0, 1, 2, 3), before)
    assert (why is not None) == asks


def test_who_came_or_went_is_named_also_one_with_a_new_key() -> None:
    now, new = roster_of(0, 1, 2), Identity.generate("org-001", CounterRandomness("new key"))
    before = Roster.of([*roster_of(0, 2).members, new.member])
    assert "came or went: org-001." in str(reason_to_ask(3, now, [before]))
