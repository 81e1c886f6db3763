"""The sums of a job at the server, exchange by exchange: under masks, or in the open.

Both take what owners answer and give the totals of blocks; neither knows of Flower. `SecureSums`
runs the machine of `blindmerge_server.protocol`; masked blocks wait on disk until the survivors
are fixed. `OpenSums` adds statistics as they come, which shows every one of them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy.typing as npt

from blindmerge.encoding import Layout
from blindmerge.errors import PeerInvalid, ProtocolBroken
from blindmerge.identity import Roster
from blindmerge.plan import Plan
from blindmerge.secagg.messages import Block, Limits, parse
from blindmerge.secagg.transcript import Transcript
from blindmerge_server.exchanges import Exchange, Kind
from blindmerge_server.protocol import receive, start
from blindmerge_server.rounds import MIN_OWNERS, BlockSum, Total
from blindmerge_server.spool import Spool
from blindmerge_server.states import Agreeing, Collecting, OpenState, Unmasking
from blindmerge_server.unmask import sum_statistic

__all__ = ["OpenSums", "Proof", "SecureSums", "Sums"]

Answer = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Proof:
    """Who was in a secure sum: the transcript, and whose shares opened the masks."""

    transcript: Transcript
    openers: tuple[str, ...]


class Sums(Protocol):
    """How the statistics of a job are added up."""

    least_owners: int
    proofs: list[Proof]
    """One for each secure sum that has ended."""

    def messages(self, exchange: Exchange, owner: str) -> tuple[bytes, ...]:
        """What an owner is told in an exchange."""

    def receive(self, exchange: Exchange, owner: str, answer: Answer) -> None:
        """Takes an owner's answer.   Raises PeerInvalid if it is none; it is then out."""

    def close(self, exchange: Exchange) -> Iterator[Total]:
        """Ends an exchange; gives the totals of blocks that are known now, one at a time.

        Raises TooFewOwners or another JobAborted if the job cannot go on.
        """


class OpenSums:
    """Sums that the server watches grow: for a plan without masks."""

    def __init__(self, plan: Plan) -> None:
        self.least_owners = MIN_OWNERS
        self.proofs: list[Proof] = []
        self._plan = plan
        self._sum: BlockSum | None = None

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
        if exchange.block is not None:
            added, self._sum = self._sum or BlockSum(self._plan, exchange.block), None
            yield added.total()


class SecureSums:
    """Sums under masks.

    layouts: for each phase, the public exponents of each of its blocks.
    folder: for masked blocks; private to the job.   expires: Unix time in seconds after which
    no owner joins.
    Raises PeerInvalid if plan, roster and layouts do not fit each other.
    """

    def __init__(
        self,
        plan: Plan,
        roster: Roster,
        layouts: Sequence[Sequence[Layout]],
        folder: Path,
        expires: int,
    ) -> None:
        self.proofs: list[Proof] = []
        self._plan = plan
        self._roster = roster
        self._seats = {member.name: seat for seat, member in enumerate(roster.members)}
        self._folder = folder
        self._manifests = [
            plan.sum_manifest(phase, parts, attempt=0, expires=expires)
            for phase, parts in enumerate(layouts)
        ]
        if len(self._manifests) != len(plan.phases):
            raise ProtocolBroken("there are not as many layouts as the plan has sums")
        self.least_owners = self._manifests[0].thresholds.quorum
        self._spool = Spool(folder, self._manifests[0])
        self._now: OpenState = start(self._manifests[0], roster)
        self._next: OpenState | None = None

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
            if len(answer) != len(self._states):
                raise ProtocolBroken(f"'{owner}' sent {len(answer)} messages at once")
            first, *rest = (array.tobytes() for array in answer.values())
            self._now = receive(self._now, seat, first)
            if self._next is not None:
                self._next = receive(self._next, seat, rest[0])

    def close(self, exchange: Exchange) -> Iterator[Total]:
        """Closes the round; after the last one, the totals of all blocks of the sum."""
        if exchange.kind in (Kind.ADVERTISE, Kind.SHARE):
            self._now = _closed(self._now)
        elif exchange.kind is Kind.MASKED_INPUT:
            if exchange.block == self._plan.phases[exchange.phase][-1]:
                self._close_input(exchange.phase + 1)
        elif exchange.kind is Kind.CONSISTENCY:
            self._now = _closed(self._now)
            self._next = None if self._next is None else _closed(self._next)
        elif exchange.kind is Kind.UNMASK:
            yield from self._totals(exchange.phase)

    @property
    def _states(self) -> tuple[OpenState, ...]:
        return (self._now,) if self._next is None else (self._now, self._next)

    def _receive_blocks(self, seat: int, exchange: Exchange, answer: Answer) -> None:
        manifest = self._now.manifest
        state = self._now
        for array in answer.values():
            data = array.tobytes()
            state = receive(state, seat, data)
            message = parse(data, Limits.of(manifest))
            if isinstance(message, Block):
                self._spool.write(seat, message.index, message.payload)
        part = self._plan.phases[exchange.phase].index(cast(int, exchange.block))
        if not isinstance(state, Collecting) or not state.has(seat, part):
            raise ProtocolBroken(f"'{self._roster.name(seat)}' did not send all its blocks")
        self._spool.sync(seat)
        self._now = state

    def _close_input(self, following: int) -> None:
        """Fixes U3; who is in it may take part in the next sum."""
        agreeing = _closed(self._now)
        if not isinstance(agreeing, Agreeing):
            raise AssertionError("masked input ends with the survivors")
        self._now = agreeing
        if following < len(self._manifests):
            self._next = start(self._manifests[following], self._roster, agreeing.sets.u3)

    def _totals(self, phase: int) -> Iterator[Total]:
        opened = self._now.close()
        if not isinstance(opened, Unmasking):
            raise AssertionError("the masks are opened last")
        transcript = opened.transcript
        openers = tuple(self._roster.name(seat) for seat in opened.openers)
        self.proofs.append(Proof(transcript, openers))
        threads = len(os.sched_getaffinity(0))
        for part, block in enumerate(self._plan.phases[phase]):
            statistic = sum_statistic(opened, self._spool, part, threads=threads)
            yield Total(block, transcript.summed, statistic)
        self._spool.remove()
        if self._next is not None:
            self._now, self._next = _closed(self._next), None
            self._spool = Spool(self._folder, self._now.manifest)

    def _seat(self, owner: str) -> int:
        if owner not in self._seats:
            raise PeerInvalid(f"'{owner}' is not in the roster")
        return self._seats[owner]


def _closed(state: OpenState) -> OpenState:
    after = state.close()
    if isinstance(after, Unmasking):
        raise AssertionError("the masks are opened last")
    return after
