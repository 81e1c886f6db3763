"""Attack: messages of a wrong length, to shift numbers or to make the other side crash."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blindmerge.errors import ProtocolBroken
from blindmerge.secagg.messages import Block, Deal, Limits, Message, Opening, encode, parse
from support.adversary import revealed_sums
from support.secure_sum import check_sum, federation, manifest_for

CHANGES: dict[str, tuple[str, Callable[[Message], Message]]] = {
    "a longer block": (
        "R2",
        lambda m: replace(m, payload=m.payload + bytes(8)) if isinstance(m, Block) else m,
    ),
    "a shorter block": (
        "R2",
        lambda m: replace(m, payload=m.payload[8:]) if isinstance(m, Block) else m,
    ),
    "a block too many": (
        "R2",
        lambda m: replace(m, index=99) if isinstance(m, Block) else m,
    ),
    "a deal to fewer": (
        "R1",
        lambda m: replace(m, sealed=m.sealed[82:]) if isinstance(m, Deal) else m,
    ),
    "fewer commitments": (
        "R1",
        lambda m: replace(m, commitments=m.commitments[64:]) if isinstance(m, Deal) else m,
    ),
    "fewer shares opened": (
        "R4",
        lambda m: replace(m, shares=m.shares[33:]) if isinstance(m, Opening) else m,
    ),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_an_owner_that_sends_a_wrong_length_is_named_and_drops_out(change: str) -> None:
    step, alter = CHANGES[change]
    owners = federation(5)
    manifest = manifest_for(owners.roster)

    def hostile(seat: int, data: bytes) -> Sequence[bytes]:
        if seat != 3:
            return (data,)
        return (encode(alter(parse(data, Limits.of(manifest))), 5),)

    owners.to_server = hostile
    survivors = range(5) if step == "R4" else (0, 1, 2, 4)
    check_sum(owners.run(manifest), owners, survivors)
    assert {who for who, _ in owners.errors} == {"server"}
    for _, error in owners.errors:
        assert isinstance(error, ProtocolBroken)
        assert "org-003" in error.message
    assert revealed_sums(owners, manifest) == [list(survivors)]


@pytest.mark.parametrize("step", ["R1", "R2", "R3", "R4"])
def test_a_request_of_a_wrong_length_is_refused_by_every_owner(step: str) -> None:
    changes: tuple[Callable[[bytes], bytes], ...] = (
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:0],
    )
    for change in changes:
        owners = federation(4)
        manifest = manifest_for(owners.roster)
        state, _ = owners.advance(manifest, step)
        for seat in range(4):
            assert owners.deliver(seat, change(state.request(seat))) == []
        assert len(owners.errors) == 4
        assert not owners.openings
