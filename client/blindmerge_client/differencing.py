"""Two sums over almost the same owners: whoever knows both subtracts one from the other."""

from collections.abc import Sequence

from blindmerge.identity import Roster

__all__ = ["reason_to_ask"]


def reason_to_ask(least_owners: int, roster: Roster, earlier: Sequence[Roster]) -> str | None:
    """Why a person must approve, though the policy may say "automatic"; None if nobody must.

    least_owners: of a sum, as the policy says.   roster: of the job.   earlier: of other jobs on
    the same examples. What is left of two sums is the sum over those who came or went; it should
    not be over fewer than any other sum, so a roster that changed by fewer is asked about.
    """
    for before in earlier:
        changed = {each.name for each in {*before.members} ^ {*roster.members}}
        if 0 < len(changed) < least_owners:
            names = ", ".join(sorted(changed))
            return (
                "An earlier job on the same examples was with almost the same owners. Whoever "
                "has both sums can subtract them, and see the sum over those who came or went: "
                f"{names}."
            )
    return None
