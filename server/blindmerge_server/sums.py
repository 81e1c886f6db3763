"""The sums of a job at the server, exchange by exchange: under masks, or in the open.

Both take what owners answer and give the totals of blocks; neither knows of Flower. `SecureSums`
runs the machine of `blindmerge_server.protocol`; masked blocks wait on disk until the survivors
are fixed. `OpenSums` adds statistics as they come, which shows every one of them.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy.typing as npt

from blindmerge.encoding import Layout
from blindmerge.errors import JobAborted, PeerInvalid, ProtocolBroken
from blindmerge.identity import Roster
from blindmerge.plan import Plan
from blindmerge.secagg.messages import Block
from blindmerge.secagg.transcript import Transcript
from blindmerge_server.exchanges import Exchange, Kind
from blindmerge_server.protocol import decode_state, encode_state, read, receive, start, take
from blindmerge_server.rounds import MIN_OWNERS, BlockSum, Total
from blindmerge_server.spool import Receipt, Spool
from blindmerge_server.states import Agreeing, Collecting, OpenState, ServerState, Unmasking
from blindmerge_server.unmask import sum_statistic

__all__ = ["OpenSums", "Proof", "SecureSums", "Sums", "SumsState"]

Answer = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Proof:
    """Who was in a secure sum: the transcript, and whose shares opened the masks."""

    transcript: Transcript
    openers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SumsState:
    """Where the secure sums of a job are; secret.

    closed: exchanges.   now, following: encoded states of the sum that goes on, and of the one
    whose first rounds ride on it; empty if there is none.   proofs: of sums that have ended.
    """

    closed: int
    now: bytes
    following: bytes
    proofs: tuple[Proof, ...]


class Sums(Protocol):
    """How the statistics of a job are added up."""

    least_owners: int
    closed: int
    """How many exchanges are closed."""
    proofs: list[Proof]
    """One for each secure sum that has ended."""

    def answered(self, exchange: Exchange) -> Mapping[str, int]:
        """Owners whose answers are here from before a restart, and how many bytes they sent."""

    def messages(self, exchange: Exchange, owner: str) -> tuple[bytes, ...]:
        """What an owner is told in an exchange."""

    def receive(self, exchange: Exchange, owner: str, answer: Answer) -> None:
        """Takes an owner's answer.   Raises PeerInvalid if it is none; it is then out."""

    def close(self, exchange: Exchange) -> Iterator[Total]:
        """Ends an exchange; gives the totals of blocks that are known now, one at a time.

        Raises TooFewOwners or another JobAborted if the job cannot go on.
        """

    def totals(self) -> Iterator[Total]:
        """The totals that were known before a restart and may not have been used."""


class OpenSums:
    """Sums that the server watches grow: for a plan without masks."""

    def __init__(self, plan: Plan) -> None:
        self.least_owners = MIN_OWNERS
        self.closed = 0
        self.proofs: list[Proof] = []
        self._plan = plan
        self._sum: BlockSum | None = None

    def answered(self, exchange: Exchange) -> Mapping[str, int]:
        """None: these sums do not survive a restart."""
        del exchange
        return {}

    def messages(self, exchange: Exchange, owner: str) -> tuple[bytes, ...]:
        """None."""
        del exchange, owner
        return ()

    def receive(self, exchange: Exchange, owner: str, answer: Answer) -> None:
        """Adds the owner's statistic of the block."""
        if exchange.block is None:
            return
        if self._sum is None:
            self._sum = BlockSum(self._plan, exchange.block)
        self._sum.add(owner, answer)

    def close(self, exchange: Exchange) -> Iterator[Total]:
        """The total of the block that was asked for."""
        self.closed += 1
        if exchange.block is not None:
            added, self._sum = self._sum or BlockSum(self._plan, exchange.block), None
            yield added.total()

    def totals(self) -> Iterator[Total]:
        """None."""
        return iter(())


class SecureSums:
    """Sums under masks.

    layouts: for each phase, the public exponents of each of its blocks.
    folder: for masked blocks; private to the job.   expires: Unix time in seconds after which
    no owner joins.   kept: where the job was when the server died; None begins it.
    keep: is given every state before anything follows from it; without it nothing survives the
    process, and no block has to reach the disk.
    Raises PeerInvalid if plan, roster and layouts do not fit each other, JobAborted if `kept` is
    damaged or of another job.
    """

    def __init__(
        self,
        plan: Plan,
        roster: Roster,
        layouts: Sequence[Sequence[Layout]],
        folder: Path,
        expires: int,
        kept: SumsState | None = None,
        keep: Callable[[SumsState], None] | None = None,
    ) -> None:
        self._plan = plan
        self._roster = roster
        self._seats = {member.name: seat for seat, member in enumerate(roster.members)}
        self._folder = folder
        self._keep = keep
        self._manifests = [
            plan.sum_manifest(phase, parts, attempt=0, expires=expires)
            for phase, parts in enumerate(layouts)
        ]
        if len(self._manifests) != len(plan.phases):
            raise ProtocolBroken("there are not as many layouts as the plan has sums")
        self.least_owners = self._manifests[0].thresholds.quorum
        first = encode_state(start(self._manifests[0], roster))
        state = kept or SumsState(0, first, b"", ())
        self.closed = state.closed
        self.proofs: list[Proof] = list(state.proofs)
        for proof in self.proofs:  # the server may have died just before it did this
            Spool(folder, proof.transcript.manifest).remove()
        self._now = self._restored(state.now)
        self._next = self._restored(state.following)

    def answered(self, exchange: Exchange) -> Mapping[str, int]:
        """Owners whose masked blocks are on disk."""
        if exchange.kind is not Kind.MASKED_INPUT:
            return {}
        receipts = self._spool.receipts(self._part(exchange))
        return {self._roster.name(receipt.seat): receipt.size_bytes for receipt in receipts}

    def messages(self, exchange: Exchange, owner: str) -> tuple[bytes, ...]:
        """Of the sum that goes on, and of the next one if its first rounds ride on this."""
        if exchange.kind is Kind.DELIVERY:
            return ()
        seat = self._seat(owner)
        return tuple(state.request(seat) for state in self._states if seat in state.awaited)

    def receive(self, exchange: Exchange, owner: str, answer: Answer) -> None:
        """The owner's messages, each for the state that asked for it; blocks go to the disk."""
        seat = self._seat(owner)
        if exchange.kind is Kind.MASKED_INPUT:
            self._receive_blocks(seat, exchange, answer)
        elif exchange.kind is not Kind.DELIVERY:
            states = self._states
            if len(answer) != len(states):
                raise ProtocolBroken(f"'{owner}' sent {len(answer)} messages at once")
            first, *rest = (array.tobytes() for array in answer.values())
            self._now = receive(states[0], seat, first)
            if self._next is not None:
                self._next = receive(states[1], seat, rest[0])

    def close(self, exchange: Exchange) -> Iterator[Total]:
        """Closes the round; after the last one, the totals of all blocks of the sum."""
        if exchange.kind is Kind.MASKED_INPUT:
            if exchange.block == self._plan.phases[exchange.phase][-1]:
                self._close_input(exchange.phase + 1)
        elif exchange.kind is not Kind.DELIVERY:
            after = [state.close() for state in self._states]
            self._now, self._next = after[0], after[1] if len(after) > 1 else None
        self.closed += 1
        self._save()
        return self.totals()

    def totals(self) -> Iterator[Total]:
        """What the masks that are open give; the next sum begins when all of it is used."""
        opened = self._now
        if not isinstance(opened, Unmasking):
            return
        manifest, summed = opened.transcript.manifest, opened.transcript.summed
        openers = tuple(self._roster.name(seat) for seat in opened.openers)
        self.proofs.append(Proof(opened.transcript, openers))
        spool, threads = Spool(self._folder, manifest), len(os.sched_getaffinity(0))
        for part, block in enumerate(self._plan.phases[manifest.phase]):
            yield Total(block, summed, sum_statistic(opened, spool, part, threads=threads))
        self._now, self._next = self._next, None
        self._save()
        spool.remove()

    @property
    def _states(self) -> tuple[OpenState, ...]:
        return tuple(_open(state) for state in (self._now, self._next) if state is not None)

    @property
    def _spool(self) -> Spool:
        return Spool(self._folder, _open(self._now).manifest)

    def _part(self, exchange: Exchange) -> int:
        return self._plan.phases[exchange.phase].index(cast(int, exchange.block))

    def _receive_blocks(self, seat: int, exchange: Exchange, answer: Answer) -> None:
        state, spool, part = _open(self._now), self._spool, self._part(exchange)
        for array in answer.values():
            message = read(state, seat, array.tobytes())
            state = take(state, seat, message)
            if isinstance(message, Block):
                spool.write(seat, message.index, message.payload)
        if not isinstance(state, Collecting) or not state.has(seat, part):
            raise ProtocolBroken(f"'{self._roster.name(seat)}' did not send all its blocks")
        if self._keep is not None:
            size_bytes = sum(array.nbytes for array in answer.values())
            digests = {n: state.digests[seat][n] for n in state.manifest.blocks_of(part)}
            spool.acknowledge(Receipt(seat, part, size_bytes, digests))
        self._now = state

    def _close_input(self, following: int) -> None:
        """Fixes U3; who is in it may take part in the next sum."""
        agreeing = _open(self._now).close()
        if not isinstance(agreeing, Agreeing):
            raise AssertionError("masked input ends with the survivors")
        self._now = agreeing
        if following < len(self._manifests):
            self._next = start(self._manifests[following], self._roster, agreeing.sets.u3)

    def _save(self) -> None:
        if self._keep is None:
            return
        now, following = (
            b"" if state is None else encode_state(state) for state in (self._now, self._next)
        )
        self._keep(SumsState(self.closed, now, following, tuple(self.proofs)))

    def _restored(self, data: bytes) -> ServerState | None:
        """A state that was kept, with all blocks that are on disk."""
        if not data:
            return None
        state = decode_state(data)
        manifest = state.transcript.manifest if isinstance(state, Unmasking) else state.manifest
        if manifest != self._manifests[manifest.phase]:
            raise JobAborted("the state that was kept is that of another job")
        if isinstance(state, Collecting):
            for receipt in Spool(self._folder, manifest).receipts():
                known = state.digests.get(receipt.seat, {}) | receipt.digests
                state = replace(state, digests=state.digests | {receipt.seat: known})
        return state

    def _seat(self, owner: str) -> int:
        if owner not in self._seats:
            raise PeerInvalid(f"'{owner}' is not in the roster")
        return self._seats[owner]


def _open(state: ServerState | None) -> OpenState:
    if state is None or isinstance(state, Unmasking):
        raise AssertionError("no round is open")
    return state
