"""An in-memory federation that runs the secure sum, with switches for hostile parties.

Owners and server are the real machines; what stands between them is a `Wire`, whose hooks
may drop, change, repeat or invent messages. Every state is saved and read back after every
step, so each test is also a test of restarts.
"""

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice

import numpy as np
from blake3 import blake3

from blindmerge.encoding import Bits, Layout, uniform
from blindmerge.errors import BlindmergeError
from blindmerge.identity import Identity, Roster
from blindmerge.secagg.manifest import SumManifest, Terms, Thresholds
from blindmerge.secagg.masks import Prg
from blindmerge.secagg.messages import Block, Limits, Message, encode, parse
from blindmerge.secagg.transcript import Transcript, verify_transcript
from blindmerge.statistic import Statistic
from blindmerge_client.protocol import OwnerJob, Receipt
from blindmerge_client.rounds import encode_part
from blindmerge_client.states import Masked, Ready, Revealed
from blindmerge_server.protocol import decode_state, encode_state, receive, start
from blindmerge_server.states import OpenState, ServerState, Unmasking
from blindmerge_server.unmask import sum_statistic
from support.randomness import CounterRandomness

__all__ = [
    "NOW",
    "ROUNDS",
    "Federation",
    "MemorySpool",
    "Outcome",
    "check_sum",
    "federation",
    "identities",
    "manifest_for",
    "statistic_of",
    "three_parts",
]

NOW = 1_000_000
ROUNDS = ("R0", "R1", "R2", "R3", "R4")
SCHEMA = {"weight": (1,), "a:delta": (2, 3)}
PLAN, BASE = "a" * 64, "b" * 64


def identities(owners: int) -> list[Identity]:
    """Identities org-000, org-001... with fixed keys."""
    return [
        Identity.generate(f"org-{seat:03d}", CounterRandomness(f"identity {seat}"))
        for seat in range(owners)
    ]


def statistic_of(seat: int, schema: Mapping[str, tuple[int, ...]] = SCHEMA) -> Statistic:
    """Numbers that are multiples of 2^-10, so that sums are exact: any error shows."""
    rng = np.random.default_rng(seat)
    arrays = {name: rng.integers(-4096, 4096, shape) / 1024.0 for name, shape in schema.items()}
    return Statistic(schema, arrays)


def manifest_for(
    roster: Roster,
    *,
    thresholds: Thresholds | None = None,
    parts: Sequence[Layout] = (),
    bits: Bits = 64,
    prg: Prg = "aes-256-ctr",
    block_elements: int = 4,
    phase: int = 0,
    phases: int = 1,
    attempt: int = 0,
    job: str = "job",
) -> SumManifest:
    """A manifest that all owners of `federation` accept."""
    owners = len(roster)
    return SumManifest(
        job=job,
        phase=phase,
        phases=phases,
        attempt=attempt,
        roster=roster.sha256.hex(),
        plan=PLAN,
        base=BASE,
        parts=tuple(parts)
        or (uniform(SCHEMA, 8, owners=owners, bits=bits, block_elements=block_elements),),
        prg=prg,
        thresholds=thresholds or Thresholds.for_owners(owners),
        expires=NOW + 60,
    )


def three_parts(owners: int, *, bits: Bits = 64) -> list[Layout]:
    """Parts of 2, 1 and 3 blocks, whose sizes differ."""
    return [
        uniform(schema, 8, owners=owners, bits=bits, block_elements=elements)
        for schema, elements in ((SCHEMA, 4), ({"b:delta": (5,)}, 9), ({"c:delta": (2, 4)}, 3))
    ]


class MemorySpool:
    """Masked blocks in memory."""

    def __init__(self) -> None:
        self.payloads: dict[tuple[int, int], bytes] = {}

    def write(self, seat: int, block: int, payload: bytes) -> None:
        """Keeps a block."""
        self.payloads[seat, block] = payload

    def sync(self, seat: int) -> None:
        """Nothing: memory."""

    def read(self, seat: int, block: int, digest: bytes) -> bytes:
        """The block."""
        assert blake3(self.payloads[seat, block]).digest() == digest
        return self.payloads[seat, block]


def stored(job: OwnerJob) -> tuple[OwnerJob, Receipt]:
    """The job as it is after a crash and a restart, and the receipt of its storage."""
    data = job.encode()
    empty = OwnerJob(job.job, job.identity, job.terms, job.limits)
    restarted = empty.restore(data)
    assert restarted.encode() == data
    return restarted, Receipt(hashlib.sha256(data).digest())


Hook = Callable[[int, bytes], Sequence[bytes]]
"""Given a seat and bytes on their way, what arrives: nothing, them, others, several."""


def honest(_: int, data: bytes) -> Sequence[bytes]:
    """What is sent arrives."""
    return (data,)


@dataclass
class Federation:
    """Owners with their jobs and statistics.

    to_owner, to_server: what the network does to messages.   gone: from which round on an
    owner is silent.   partial: owners that vanish after their first block.   parts: those
    that owners send when they are asked for masked input; all by default.
    errors: what owners and server refused, in order: (who, error).   sent: what reached the
    server.   openings: what owners opened, with the sets they believed in.
    masked: by run and seat, the state of owners when they began to send blocks.
    """

    jobs: list[OwnerJob]
    statistics: list[Statistic]
    to_owner: Hook = honest
    to_server: Hook = honest
    gone: dict[int, str] = field(default_factory=dict)
    leaving: dict[int, tuple[int, str]] = field(default_factory=dict)
    partial: frozenset[int] = frozenset()
    parts: Sequence[int] | None = None
    restarts: bool = True
    spool: Callable[[], MemorySpool] = MemorySpool
    errors: list[tuple[str, BlindmergeError]] = field(default_factory=list)
    sent: list[tuple[int, Message]] = field(default_factory=list)
    openings: list[tuple[int, Revealed]] = field(default_factory=list)
    masked: dict[tuple[bytes, int], Masked] = field(default_factory=dict)
    rng: CounterRandomness = field(default_factory=lambda: CounterRandomness("owners"))

    @property
    def roster(self) -> Roster:
        """The roster all owners pinned."""
        return self.jobs[0].terms.roster

    def deliver(self, seat: int, data: bytes) -> list[bytes]:
        """One message of the server reaches an owner; what it answers."""
        job = self.jobs[seat]
        try:
            job = job.receive(data, now=NOW, rng=self.rng)
            phase = job.phase_of(data)
            reply = self._store(seat, job).reply(phase, self._receipt(seat))
            state = self.jobs[seat].runs[phase].state
            if isinstance(state, Revealed):
                self.openings.append((seat, state))
            if isinstance(state, Ready | Masked):
                blocks = self._masked_input(seat, state.manifest)
                return list(islice(blocks, 1 if seat in self.partial else None))
        except BlindmergeError as error:
            self.errors.append((job.identity.name, error))
            return []
        return [] if reply is None else [reply]

    def _masked_input(self, seat: int, manifest: SumManifest) -> Iterator[bytes]:
        """Part after part is computed, fixed, stored, masked and sent."""
        phase = manifest.phase
        for part in range(len(manifest.parts)) if self.parts is None else self.parts:
            rings = encode_part(manifest, part, self.input(seat, manifest, part))
            job = self._store(seat, self.jobs[seat].commit_part(phase, part, rings))
            state = job.runs[phase].state
            assert isinstance(state, Masked)
            self.masked[manifest.hash, seat] = state
            for block in job.masker(phase, self._receipt(seat)).blocks(part, rings):
                yield encode(block, len(self.roster))

    def _store(self, seat: int, job: OwnerJob) -> OwnerJob:
        self.jobs[seat] = stored(job)[0] if self.restarts else job
        return self.jobs[seat]

    def _receipt(self, seat: int) -> Receipt:
        return Receipt(hashlib.sha256(self.jobs[seat].encode()).digest())

    def exchange(
        self,
        state: OpenState,
        requests: Sequence[tuple[int, bytes]],
        spool: MemorySpool,
        step: str,
    ) -> OpenState:
        """Sends requests, and gives the server what comes back."""
        for seat, request in requests:
            if self.is_silent(seat, state.manifest.phase, step):
                continue
            for arriving in self.to_owner(seat, request):
                for answer in self.deliver(seat, arriving):
                    for data in self.to_server(seat, answer):
                        state = self.accept(state, seat, data, spool)
        return state

    def is_silent(self, seat: int, phase: int, step: str) -> bool:
        """Whether an owner has vanished."""
        place = ROUNDS.index(step)
        if seat in self.gone and place >= ROUNDS.index(self.gone[seat]):
            return True
        if seat not in self.leaving:
            return False
        left, at = self.leaving[seat]
        return (phase, place) >= (left, ROUNDS.index(at))

    def accept(self, state: OpenState, seat: int, data: bytes, spool: MemorySpool) -> OpenState:
        """One answer reaches the server."""
        try:
            message = parse(data, self.jobs[0].limits)
            self.sent.append((seat, message))
            after = receive(state, seat, data)
            if isinstance(message, Block):
                spool.write(seat, message.index, message.payload)
                spool.sync(seat)
        except BlindmergeError as error:
            self.errors.append(("server", error))
            return state
        return after

    def ask(self, seat: int, message: Message) -> list[Message]:
        """A hostile server says something to one owner; what it answers."""
        answers = self.deliver(seat, encode(message, len(self.roster)))
        return [parse(answer, self.jobs[0].limits) for answer in answers]

    def advance(
        self, manifest: SumManifest, stop: str, allowed: Sequence[int] | None = None
    ) -> tuple[OpenState, MemorySpool]:
        """An honest server's rounds before `stop`, which is open when this returns."""
        spool = self.spool()
        state: OpenState = start(manifest, self.roster, allowed)
        for step in ROUNDS[: ROUNDS.index(stop)]:
            state = self.round(state, spool, step)
            closed = self.restarted(state.close())
            assert not isinstance(closed, Unmasking)
            state = closed
        return state, spool

    def round(self, state: OpenState, spool: MemorySpool, step: str) -> OpenState:
        """One honest round, not closed."""
        requests = [(seat, state.request(seat)) for seat in state.awaited]
        return self.exchange(state, requests, spool, step)

    def run(self, manifest: SumManifest, allowed: Sequence[int] | None = None) -> "Outcome":
        """One whole run by an honest server.   Raises what makes the server stop."""
        state, spool = self.advance(manifest, "R4", allowed)
        closed = self.restarted(self.round(state, spool, "R4").close())
        assert isinstance(closed, Unmasking)
        return Outcome.of(closed, spool)

    def restarted(self, state: ServerState) -> ServerState:
        """The server's state after it was killed and started again."""
        return decode_state(encode_state(state)) if self.restarts else state

    def input(self, seat: int, manifest: SumManifest, part: int) -> Statistic:
        """What an owner contributes to a part of a phase."""
        if manifest.phase == part == 0:
            return self.statistics[seat]
        seed = 100_000 * part + 1000 * manifest.phase + seat
        return statistic_of(seed, manifest.parts[part].shapes)

    def expected(self, seats: Sequence[int], manifest: SumManifest, part: int) -> Statistic:
        """The exact sum over some owners."""
        inputs = [self.input(seat, manifest, part) for seat in seats]
        return reduce(operator.add, inputs)


@dataclass(frozen=True)
class Outcome:
    """The end of a run."""

    state: Unmasking
    totals: tuple[Statistic, ...]

    @classmethod
    def of(cls, state: Unmasking, spool: MemorySpool) -> "Outcome":
        """All parts, unmasked."""
        parts = range(len(state.transcript.manifest.parts))
        return cls(state, tuple(sum_statistic(state, spool, part) for part in parts))

    @property
    def total(self) -> Statistic:
        """The sum, if it has one part."""
        (total,) = self.totals
        return total

    @property
    def transcript(self) -> Transcript:
        """The proof of who was in it."""
        return self.state.transcript


def federation(owners: int, *, terms: Mapping[str, int] | None = None) -> Federation:
    """Owners that trust one roster and one plan."""
    everybody = identities(owners)
    roster = Roster.of([identity.member for identity in everybody])
    demanded = Terms(roster, PLAN, BASE, **(terms or {}))
    limits = Limits.of(manifest_for(roster, phases=9))
    jobs = [OwnerJob("job", identity, demanded, limits) for identity in everybody]
    return Federation(jobs, [statistic_of(seat) for seat in range(owners)])


def check_sum(outcome: Outcome, owners: Federation, seats: Sequence[int]) -> None:
    """The result is the exact sum over these owners, and its proof says so."""
    assert outcome.transcript.sets.u3 == tuple(seats)
    manifest = outcome.transcript.manifest
    for part, total in enumerate(outcome.totals):
        for name, exact in owners.expected(seats, manifest, part).arrays.items():
            assert (total[name] == exact).all()
    proof = verify_transcript(outcome.transcript.encode())
    assert proof.summed == tuple(owners.roster.name(seat) for seat in seats)
