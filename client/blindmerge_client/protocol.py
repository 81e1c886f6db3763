"""The owner's machine for all secure sums of one job: no I/O, no clock, no hidden randomness.

A job is one sum per phase. `OwnerJob` is a value: a message gives a new one, and a message
that is refused leaves the old one. What is said to the server is a function of the state
*on disk*: `reply` and `masker` ask for the receipt of having stored it, so that nothing
leaves before a restart would remember it.

    job = job.receive(data, now=..., rng=...)
    receipt = journal.save(job)         # fsync; see blindmerge_client.journal
    send(job.reply(job.phase_of(data), receipt))

The input goes part by part, none of which needs the memory of another:

    rings = encode_part(manifest, part, statistic)
    job = job.commit_part(phase, part, rings)
    receipt = journal.save(job)
    for block in job.masker(phase, receipt).blocks(part, rings): send(block)

A phase may begin while the one before awaits its opening: its key rounds ride on the last
two rounds of the phase before (SPEC §8).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from blindmerge.encoding import Ring
from blindmerge.errors import AlreadyAnswered, JobAborted, ProtocolBroken
from blindmerge.identity import Identity
from blindmerge.secagg.manifest import SumManifest, Terms
from blindmerge.secagg.messages import (
    AdvertList,
    Consent,
    ConsentList,
    Deal,
    Deliveries,
    Limits,
    Message,
    MyAdvert,
    Opening,
    Propose,
    Survivors,
    encode,
    parse,
)
from blindmerge.secagg.persist import dump, load
from blindmerge.secagg.secret import Randomness
from blindmerge.secagg.transitions import OWNER, next_state
from blindmerge_client.rounds import (
    Masker,
    advertise,
    commit_part,
    on_adverts,
    on_consents,
    on_deliveries,
    on_survivors,
)
from blindmerge_client.states import (
    STATES,
    Advertised,
    Agreed,
    Masked,
    OwnerState,
    Ready,
    Revealed,
    Shared,
)

__all__ = ["History", "OwnerJob", "Receipt", "Run"]

_LABEL = "blindmerge/1 owner"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Somebody stored, and synced, a job whose bytes have this hash."""

    sha256: bytes


@dataclass(frozen=True, slots=True)
class History:
    """What must outlive a run.

    attempts: the last attempt of every phase.   survivors: U3 of every phase that was
    signed.   answered: H of the run whose masks this owner helped to open, by phase; there
    is at most one, ever.
    """

    attempts: dict[int, int] = field(default_factory=dict)
    survivors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    answered: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the protocol: its state, and the hash of every message that led to it."""

    state: OwnerState
    heard: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Saved:
    """What is on disk; each state by its name and its own bytes."""

    label: str
    job: str
    history: History
    runs: tuple[tuple[int, str, bytes, dict[str, bytes]], ...]


@dataclass(frozen=True)
class OwnerJob:
    """An owner's seat in one job.

    identity, terms: who it is and what it demands; not saved with the rest.
    limits: of messages, from the plan.   runs: by phase, at most two.
    """

    job: str
    identity: Identity
    terms: Terms
    limits: Limits
    history: History = field(default_factory=History)
    runs: Mapping[int, Run] = field(default_factory=dict)

    def receive(self, data: bytes, *, now: int, rng: Randomness) -> "OwnerJob":
        """The job after a message of the server.

        now: Unix time in seconds. The same message again changes nothing, so that the same
        reply goes out; another one of its kind is refused, since the server contradicts
        itself. Raises PeerInvalid, PolicyRefused or JobAborted.
        """
        message = parse(data, self.limits)
        digest = hashlib.sha256(data).digest()
        if isinstance(message, Propose):
            return self._propose(message, digest, now, rng)
        phase, run = self._run(message.manifest_hash)
        if message.kind in run.heard:
            if run.heard[message.kind] != digest:
                raise ProtocolBroken(
                    f"the server sent two different messages '{message.kind}'",
                    hint="somebody tries to open masks twice; inform the other organisations",
                )
            return self
        target = next_state(OWNER, run.state.name, message.kind)
        state = self._step(phase, run.state, message, rng)
        if state.name != target:
            raise AssertionError(f"{run.state.name} went to {state.name}, not {target}")
        return self._with(phase, Run(state, run.heard | {message.kind: digest}))

    def commit_part(self, phase: int, part: int, rings: Sequence[Ring]) -> "OwnerJob":
        """Fixes one part of what this owner contributes to a phase (R2.2).

        rings: from `encode_part`. The same again changes nothing. Raises ProtocolBroken
        before the shares of others are there, after the survivors are fixed, or before the
        phase before was answered; JobAborted if the part was fixed with other numbers.
        """
        run = self._at(phase)
        next_state(OWNER, run.state.name, "own input")
        if not isinstance(run.state, Ready | Masked):
            raise AssertionError("only 'ready' and 'masked' take an input")
        if phase > 0 and phase - 1 not in self.history.answered:
            raise ProtocolBroken(f"phase {phase - 1} is not answered yet")
        return self._with(phase, Run(commit_part(run.state, part, rings), run.heard))

    def reply(self, phase: int, receipt: Receipt) -> bytes | None:
        """What this owner says in its present state; blocks are the masker's business.

        Raises JobAborted if this very state is not on disk.
        """
        self._check_stored(receipt)
        state = self._at(phase).state
        message: Message
        match state:
            case Advertised():
                message = MyAdvert(state.manifest.hash, state.record)
            case Shared():
                message = Deal(state.manifest.hash, state.sealed, state.commitments)
            case Agreed():
                message = Consent(state.manifest.hash, state.signature)
            case Revealed():
                # SPEC R4.2: composed from a state that says so and is on disk.
                message = Opening(state.manifest.hash, state.shares.reveal())
            case _:
                return None
        return encode(message, len(self.terms.roster))

    def masker(self, phase: int, receipt: Receipt) -> Masker:
        """What masks the blocks of a phase.

        Raises JobAborted if this very state is not on disk, ProtocolBroken before a part of
        the input is fixed or after the survivors are.
        """
        self._check_stored(receipt)
        state = self._at(phase).state
        if not isinstance(state, Masked):
            raise ProtocolBroken(f"no blocks can be masked in the state '{state.name}'")
        return Masker(state)

    def state(self, phase: int) -> str:
        """The name of the state of a phase; `idle` if no run of it is going on."""
        return self.runs[phase].state.name if phase in self.runs else "idle"

    def phase_of(self, data: bytes) -> int:
        """Which phase a message of the server belongs to.   Raises as `receive` does."""
        message = parse(data, self.limits)
        if isinstance(message, Propose):
            return SumManifest.decode(message.manifest).phase
        return self._run(message.manifest_hash)[0]

    def abandon(self, phase: int) -> "OwnerJob":
        """Leaves a run, and those of later phases; their keys are forgotten."""
        return replace(self, runs={p: run for p, run in self.runs.items() if p < phase})

    def encode(self) -> bytes:
        """The bytes to store: history and runs, secrets included."""
        runs = tuple(
            (phase, run.state.name, dump(run.state), run.heard)
            for phase, run in sorted(self.runs.items())
        )
        data = dump(_Saved(_LABEL, self.job, self.history, runs))
        # Only the hash is kept for `reply`: the bytes are secret, and large.
        self.__dict__["_digest"] = hashlib.sha256(data).digest()
        return data

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.encode()).digest()

    def restore(self, data: bytes) -> "OwnerJob":
        """This owner with the history and runs that were stored.

        Raises JobAborted if the bytes are damaged or belong to another job.
        """
        saved = load(_Saved, data)
        if (saved.label, saved.job) != (_LABEL, self.job):
            raise JobAborted(f"the saved state is not that of job '{self.job}'")
        runs = {}
        for phase, name, state, heard in saved.runs:
            if name not in STATES:
                raise JobAborted(f"the saved state '{name}' is unknown")
            runs[phase] = Run(load(STATES[name], state), heard)
        return replace(self, history=saved.history, runs=runs)

    def _propose(self, message: Propose, digest: bytes, now: int, rng: Randomness) -> "OwnerJob":
        manifest = SumManifest.decode(message.manifest)
        if manifest.hash != message.manifest_hash:
            raise ProtocolBroken("a manifest does not have the hash that its message says")
        phase, history = manifest.phase, self.history
        run = self.runs.get(phase)
        if run is not None and run.heard["propose"] == digest:
            return self
        if manifest.job != self.job:
            raise ProtocolBroken("a manifest of another job came")
        # SPEC R4.3: at most one answer for an input, over all attempts.
        if phase in history.answered:
            raise AlreadyAnswered(
                f"phase {phase} of job '{self.job}' was answered already",
                hint="a job that must be repeated is a new job, which the policy decides on",
            )
        if manifest.attempt <= history.attempts.get(phase, -1):
            raise ProtocolBroken("an attempt must be newer than the last one")
        if phase > 0 and phase - 1 not in history.survivors:
            raise ProtocolBroken(
                f"this owner was not in phase {phase - 1}",
                hint="an owner that drops out of a phase is out for the rest of the job",
            )
        self.terms.check(manifest, now)
        next_state(OWNER, "idle", "propose")
        state = advertise(manifest, self.identity, self.terms.roster, rng)
        kept = {p: run for p, run in self.runs.items() if p == phase - 1}
        attempts = history.attempts | {phase: manifest.attempt}
        survivors = {p: seats for p, seats in history.survivors.items() if p < phase}
        return replace(
            self,
            history=replace(history, attempts=attempts, survivors=survivors),
            runs=kept | {phase: Run(state, {"propose": digest})},
        )

    def _step(self, phase: int, state: OwnerState, message: Message, rng: Randomness) -> OwnerState:
        match state, message:
            case Advertised(), AdvertList():
                self._check_nobody_came_back(phase, message)
                return on_adverts(state, message, self.terms, rng)
            case Shared(), Deliveries():
                return on_deliveries(state, message, self.terms)
            case Masked(), Survivors():
                return on_survivors(state, message, self.identity, self.terms)
            case Agreed(), ConsentList():
                return on_consents(state, message, self.terms)
        raise AssertionError("the table of transitions has a row that is not written")

    def _check_nobody_came_back(self, phase: int, message: AdvertList) -> None:
        before = self.history.survivors.get(phase - 1)
        if before is not None:
            back = sorted(set(message.adverts.seats) - set(before))
            if back:
                raise ProtocolBroken(
                    f"'{self.terms.roster.name(back[0])}' dropped out of phase {phase - 1} "
                    "and is back",
                    hint="an owner that drops out of a phase is out for the rest of the job",
                )

    def _with(self, phase: int, run: Run) -> "OwnerJob":
        history = self.history
        if isinstance(run.state, Agreed):
            survivors = history.survivors | {phase: run.state.sets.u3}
            history = replace(history, survivors=survivors)
        elif isinstance(run.state, Revealed):
            answered = history.answered | {phase: run.state.manifest.hash}
            history = replace(history, answered=answered)
        return replace(self, history=history, runs={**self.runs, phase: run})

    def _run(self, manifest_hash: bytes) -> tuple[int, Run]:
        for phase, run in self.runs.items():
            if run.state.manifest.hash == manifest_hash:
                return phase, run
        raise ProtocolBroken(
            "a message belongs to no run of this owner",
            hint="owners were told different manifests, or the run was given up",
        )

    def _at(self, phase: int) -> Run:
        if phase not in self.runs:
            raise ProtocolBroken(f"phase {phase} has not begun")
        return self.runs[phase]

    def _check_stored(self, receipt: Receipt) -> None:
        if receipt.sha256 != self._digest:
            raise JobAborted(
                "the state of the secure sum is not on disk yet",
                hint="save it before anything is said; see blindmerge_client.journal",
            )
