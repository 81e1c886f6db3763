"""Server and owners are killed at each step, before and after they stored their state.

The in-memory federation saves and reads every state anyway; here what was not saved is lost.
"""

from collections.abc import Sequence

import pytest

from blindmerge.errors import BlindmergeError, JobAborted, ProtocolBroken
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import Block, Message
from blindmerge_client.protocol import OwnerJob, Receipt
from blindmerge_client.rounds import encode_part
from blindmerge_server.protocol import start
from blindmerge_server.states import Collecting, OpenState, ServerState, Unmasking
from support.adversary import revealed_sums
from support.secure_sum import (
    NOW,
    ROUNDS,
    Federation,
    MemorySpool,
    Outcome,
    check_sum,
    federation,
    manifest_for,
    statistic_of,
    stored,
    three_parts,
)


@pytest.mark.parametrize("killed_in", ROUNDS)
def test_a_server_that_forgets_a_round_asks_again_and_hears_the_same(killed_in: str) -> None:
    owners, spool = federation(4), MemorySpool()
    manifest = manifest_for(owners.roster, parts=three_parts(4))
    state: OpenState = start(manifest, owners.roster)
    for step in ROUNDS:
        after = owners.round(state, spool, step)
        if step == killed_in:
            # All answers are lost: the server goes on from what it saved before the round.
            spool = MemorySpool() if step == "R2" else spool
            after = owners.round(state, spool, step)
        closed = owners.restarted(after.close())
        state = state if isinstance(closed, Unmasking) else closed
    assert isinstance(closed, Unmasking)
    check_sum(Outcome.of(closed, spool), owners, range(4))
    assert not owners.errors
    assert revealed_sums(owners, manifest) == [[0, 1, 2, 3]]
    said: dict[tuple[int, str, int], set[Message]] = {}
    for seat, message in owners.sent:
        said.setdefault((seat, message.kind, getattr(message, "index", 0)), set()).add(message)
    assert all(len(messages) == 1 for messages in said.values())


@pytest.mark.parametrize("killed_in", ROUNDS)
def test_a_server_that_loses_its_spool_or_round_cannot_change_who_is_in(killed_in: str) -> None:
    # After the restart another owner is silent, so the sets would differ: owners refuse, or
    # the server stops, or the sum over the first set is right.
    owners, spool = federation(5), MemorySpool()
    manifest = manifest_for(owners.roster)
    state: OpenState = start(manifest, owners.roster)
    try:
        for step in ROUNDS:
            before = state
            closed = owners.round(state, spool, step).close()
            if step == killed_in and step != "R4":
                # Somebody was told of `closed` before the server forgot it.
                assert not isinstance(closed, Unmasking)
                owners.deliver(0, closed.request(0))
                owners.gone = {1: step}
                closed = owners.round(before, spool, step).close()
            state = state if isinstance(closed, Unmasking) else closed
    except BlindmergeError:
        pass
    assert len(revealed_sums(owners, manifest)) <= 1


class _Forgetful(Federation):
    """An owner that is killed after every message, before its state is stored."""

    def deliver(self, seat: int, data: bytes) -> list[bytes]:
        before = self.jobs[seat]
        before.receive(data, now=NOW, rng=self.rng)  # the result is lost
        self.jobs[seat] = stored(before)[0]
        return super().deliver(seat, data)


def test_owners_killed_before_they_stored_anything_start_the_step_again() -> None:
    honest = federation(4)
    owners = _Forgetful(honest.jobs, honest.statistics)
    manifest = manifest_for(owners.roster)
    check_sum(owners.run(manifest), owners, range(4))
    assert not owners.errors


def _masked(owners: Federation) -> tuple[OwnerJob, Receipt]:
    """Owner 0 in the middle of its upload."""
    manifest = manifest_for(owners.roster)
    owners.partial = frozenset({0})
    owners.advance(manifest, "R3")
    return stored(owners.jobs[0])


def test_an_upload_goes_on_after_a_restart_with_the_same_bytes() -> None:
    owners = federation(5)
    job, receipt = _masked(owners)
    manifest = manifest_for(owners.roster)
    (first,) = [m for seat, m in owners.sent if seat == 0 and isinstance(m, Block)]
    rings = encode_part(manifest, 0, owners.statistics[0])
    assert job.commit_part(0, 0, rings).encode() == job.encode()
    again = list(job.masker(0, receipt).blocks(0, rings))
    assert again[0] == first
    assert len(again) == manifest.blocks == 2


def test_another_input_is_never_masked_with_the_same_keys() -> None:
    # y - y' would be x - x': the difference of the two inputs, in the clear.
    owners = federation(5)
    job, receipt = _masked(owners)
    masker, rings = job.masker(0, receipt), encode_part(_manifest(job), 0, statistic_of(77))
    with pytest.raises(JobAborted, match=r"part 0 .* is not the one before"):
        job.commit_part(0, 0, rings)
    for block, ring in enumerate(rings):
        with pytest.raises(JobAborted, match="changed"):
            masker.mask(block, ring)
    # Nor are the right numbers, once they were masked, taken for the input again.
    rings = encode_part(_manifest(job), 0, owners.statistics[0])
    masker.mask(0, rings[0])
    with pytest.raises(JobAborted, match="changed"):
        masker.mask(0, rings[0])


def _manifest(job: OwnerJob) -> SumManifest:
    return job.runs[0].state.manifest


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0, 1, 2)])
def test_parts_go_in_exchanges_of_their_own_and_both_machines_restart_between(
    order: Sequence[int],
) -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster, parts=three_parts(4))
    state, spool = owners.advance(manifest, "R2")
    for place, part in enumerate(order):
        assert state.awaited == (0, 1, 2, 3)
        owners.parts = (part,)
        state = _collecting(owners.restarted(owners.round(state, spool, "R2")))
        there = [part for part in range(3) if state.has(3, part)]
        assert there == sorted(set(order[: place + 1]))
    assert state.awaited == ()
    closed = owners.restarted(state.close())
    for step in ROUNDS[3:]:
        assert not isinstance(closed, Unmasking)
        closed = owners.restarted(owners.round(closed, spool, step).close())
    assert isinstance(closed, Unmasking)
    check_sum(Outcome.of(closed, spool), owners, range(4))
    assert revealed_sums(owners, manifest) == [[0, 1, 2, 3]]
    assert not owners.errors


def _collecting(state: ServerState) -> Collecting:
    assert isinstance(state, Collecting)
    return state


def test_a_part_is_fixed_once_and_masked_only_then() -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster, parts=three_parts(4))
    owners.parts = (1,)
    state, spool = owners.advance(manifest, "R2")
    owners.round(state, spool, "R2")
    job, receipt = stored(owners.jobs[0])
    other = encode_part(manifest, 1, statistic_of(77, manifest.parts[1].shapes))
    with pytest.raises(JobAborted, match="part 1"):
        job.commit_part(0, 1, other)
    first = encode_part(manifest, 0, owners.statistics[0])
    with pytest.raises(ProtocolBroken, match=r"part 0 .* not fixed"):
        job.masker(0, receipt).mask(0, first[0])
    # The receipt of the state before is none for the part that was fixed since.
    with pytest.raises(JobAborted, match="not on disk"):
        job.commit_part(0, 0, first).masker(0, receipt)
    for part in (-1, 3):
        with pytest.raises(ProtocolBroken, match=f"no part {part}"):
            job.commit_part(0, part, first)


def test_a_damaged_or_foreign_state_ends_the_owner_and_not_its_secrets() -> None:
    owners = federation(4)
    owners.run(manifest_for(owners.roster))
    job = owners.jobs[0]
    data = job.encode()
    empty = OwnerJob("job", job.identity, job.terms, job.limits)
    for damaged in (b"", data[:-1], data + b"\0", data[:40] + b"\xff" + data[41:]):
        with pytest.raises(JobAborted):
            empty.restore(damaged)
    with pytest.raises(JobAborted, match="other"):
        OwnerJob("other", job.identity, job.terms, job.limits).restore(data)


def test_keys_die_with_their_states() -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster)
    owners.advance(manifest, "R1")
    sealing, masking, seed = _own_secrets(owners.jobs[0])
    owners = federation(4)
    owners.advance(manifest, "R3")
    masked = owners.jobs[0].encode()
    assert sealing not in masked
    assert masking in masked
    assert seed in masked
    owners = federation(4)
    owners.run(manifest)
    revealed = owners.jobs[0].encode()
    assert not any(secret in revealed for secret in (sealing, masking, seed))
    assert "<secret" in repr(owners.jobs[0].runs)


def _own_secrets(job: OwnerJob) -> Sequence[bytes]:
    state = job.runs[0].state
    return [getattr(state, name).reveal() for name in ("sealing", "masking", "seed")]


def test_an_abandoned_run_forgets_its_keys_and_its_attempt_does_not_come_back() -> None:
    owners = federation(4)
    manifest = manifest_for(owners.roster)
    state, _ = owners.advance(manifest, "R2")
    job = owners.jobs[0].abandon(0)
    assert not job.runs
    assert job.state(0) == "idle"
    with pytest.raises(ProtocolBroken, match="no run"):
        job.receive(state.request(0), now=NOW, rng=owners.rng)
    with pytest.raises(ProtocolBroken, match="newer"):
        job.receive(start(manifest, owners.roster).request(0), now=NOW, rng=owners.rng)
    with pytest.raises(ProtocolBroken, match="not begun"):
        job.commit_part(0, 0, encode_part(manifest, 0, owners.statistics[0]))
