"""Attack: the server counts an owner in that has not sent all parts yet.

The signatures would say that the owner is in the sum of parts that it never computed.
"""

from collections.abc import Sequence

import pytest

from blindmerge.errors import ProtocolBroken
from blindmerge.secagg.messages import Survivors
from support.adversary import revealed_sums
from support.secure_sum import federation, manifest_for, three_parts

EVERYBODY = (0, 1, 2, 3)


@pytest.mark.parametrize("sent", [(), (0,), (2, 0)])
def test_an_owner_signs_only_when_all_parts_are_fixed(sent: Sequence[int]) -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster, parts=three_parts(4))
    state, spool = owners.advance(manifest, "R2")
    owners.parts = sent
    state = owners.round(state, spool, "R2")
    before = [job.encode() for job in owners.jobs]
    for seat in EVERYBODY:
        assert owners.ask(seat, Survivors(manifest.hash, EVERYBODY)) == []
        who, error = owners.errors.pop()
        assert who == owners.roster.name(seat)
        assert isinstance(error, ProtocolBroken)
    assert [job.encode() for job in owners.jobs] == before
    assert revealed_sums(owners, manifest) == []
    # What was refused changed nothing: the rest can still be sent, and then they sign.
    owners.parts = (1, 2, 0)
    owners.round(state, spool, "R2")
    for seat in EVERYBODY:
        assert len(owners.ask(seat, Survivors(manifest.hash, EVERYBODY))) == 1
