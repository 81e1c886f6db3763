"""Attack: the coordinator adds a member of its own, or changes a member's key."""

from blindmerge.errors import PolicyRefused
from blindmerge.identity import Identity, Member, Roster
from blindmerge.secagg.messages import Propose
from support.randomness import CounterRandomness
from support.secure_sum import federation, manifest_for


def test_another_roster_than_the_pinned_one_is_refused() -> None:
    owners = federation(4)
    members = list(owners.roster.members)
    stranger = Identity.generate("zz-sybil", CounterRandomness("sybil"))
    rosters = (
        Roster.of([*members, stranger.member]),  # one more
        Roster.of([*members[:3], stranger.member]),  # one replaced
        Roster.of([*members[:3], Member(members[3].name, stranger.public)]),  # another key
        Roster.of(members[:3]),  # one less: a smaller crowd to hide in
    )
    for roster in rosters:
        manifest = manifest_for(roster)
        assert owners.ask(0, Propose(manifest.hash, manifest.encoded)) == []
        _, error = owners.errors.pop()
        assert isinstance(error, PolicyRefused)
        assert "roster" in error.message
        assert owners.jobs[0].state(0) == "idle"
