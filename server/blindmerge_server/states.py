"""The states of the server in one secure sum (SPEC §6), one for each round.

A state takes the messages of owners and is closed when all have come or the strategy's
patience is over, which fixes who goes on. What it says to an owner (`request`) is a function
of the state, so the same bytes go out again after a restart.

The server is not trusted with anything: owners check what it says. What it checks itself is
there to name culprits and to stop early.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from blindmerge.errors import ProtocolBroken, ShareInvalid, TooFewOwners
from blindmerge.identity import Roster, verify
from blindmerge.secagg.adverts import Advert, Adverts, commit_to_seed
from blindmerge.secagg.digests import digest_of
from blindmerge.secagg.graph import Holders
from blindmerge.secagg.keys import ExchangeKey
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import (
    COMMITMENT_BYTES,
    SEALED_BYTES,
    AdvertList,
    Block,
    Consent,
    ConsentList,
    Deal,
    Deliveries,
    MyAdvert,
    Opening,
    Propose,
    Survivors,
    encode,
)
from blindmerge.secagg.secret import Secret
from blindmerge.secagg.shamir import PRIME, SHARE_BYTES, combine
from blindmerge.secagg.shares import commit_to_share, place_of_holder, survivors_without_holders
from blindmerge.secagg.transcript import Sets, Transcript, statement

__all__ = [
    "STATES",
    "Advertising",
    "Agreeing",
    "Collecting",
    "Dealing",
    "OpenState",
    "OpeningRound",
    "ServerState",
    "Unmasking",
]


@dataclass(frozen=True, slots=True)
class Advertising:
    """R0.   allowed: seats that may take part.   records: adverts so far, by seat."""

    name: ClassVar[str] = "advertising"
    manifest: SumManifest
    roster: Roster
    allowed: tuple[int, ...]
    records: dict[int, bytes]

    @property
    def awaited(self) -> tuple[int, ...]:
        """Who may still answer."""
        return _without(self.allowed, self.records)

    def request(self, _: int) -> bytes:
        """The manifest, for everybody."""
        return encode(Propose(self.manifest.hash, self.manifest.encoded), len(self.roster))

    def on_advert(self, seat: int, message: MyAdvert) -> "Advertising":
        """R0.2: a signed advert, whose keys nobody else has."""
        _check_expected(self.roster, seat, self.allowed)
        if _is_repeated(self.roster, seat, self.records.get(seat), message.record):
            return self
        advert = Advert.decode(message.record)
        advert.verify(self.manifest.hash, self.roster, seat)
        for other, record in self.records.items():
            known = Advert.decode(record)
            if {advert.sealing, advert.masking} & {known.sealing, known.masking}:
                raise ProtocolBroken(
                    f"'{self.roster.name(seat)}' and '{self.roster.name(other)}' "
                    "advertise the same key"
                )
        return replace(self, records=self.records | {seat: message.record})

    def close(self) -> "Dealing":
        """Fixes U1."""
        adverts = Adverts.of(self.records)
        _check_quorum(self.manifest, self.roster, adverts.seats, "advertised keys")
        return Dealing(self.manifest, self.roster, adverts, {})


@dataclass(frozen=True, slots=True)
class Dealing:
    """R1.   adverts: of U1.   deals: sealed shares and commitments so far, by seat."""

    name: ClassVar[str] = "dealing"
    manifest: SumManifest
    roster: Roster
    adverts: Adverts
    deals: dict[int, tuple[bytes, bytes]]

    @property
    def awaited(self) -> tuple[int, ...]:
        """Who may still answer."""
        return _without(self.adverts.seats, self.deals)

    def request(self, _: int) -> bytes:
        """U1 with its adverts, for everybody in it."""
        return encode(AdvertList(self.manifest.hash, self.adverts), len(self.roster))

    def on_deal(self, seat: int, message: Deal) -> "Dealing":
        """R1.2: one sealed pair and one commitment for each holder."""
        _check_expected(self.roster, seat, self.adverts.seats)
        deal = (message.sealed, message.commitments)
        if _is_repeated(self.roster, seat, self.deals.get(seat), deal):
            return self
        u1 = self.adverts.seats
        count = int(self.adverts.holders(self.manifest)[seat, list(u1)].sum())
        if (len(message.sealed), len(message.commitments)) != (
            SEALED_BYTES * (count - 1),
            COMMITMENT_BYTES * count,
        ):
            raise ProtocolBroken(
                f"'{self.roster.name(seat)}' did not deal {count} shares, one for each holder"
            )
        return replace(self, deals=self.deals | {seat: deal})

    def close(self) -> "Collecting":
        """Fixes U2."""
        u2 = tuple(sorted(self.deals))
        _check_quorum(self.manifest, self.roster, u2, "dealt shares")
        return Collecting(self.manifest, self.roster, self.adverts, self.deals, {})


@dataclass(frozen=True, slots=True)
class Collecting:
    """R2.   deals: of U2.   digests: of the blocks that the spool has, by seat."""

    name: ClassVar[str] = "collecting"
    manifest: SumManifest
    roster: Roster
    adverts: Adverts
    deals: dict[int, tuple[bytes, bytes]]
    digests: dict[int, dict[int, bytes]]

    @property
    def awaited(self) -> tuple[int, ...]:
        """Whose blocks are not all there."""
        blocks = self.manifest.blocks
        return tuple(s for s in sorted(self.deals) if len(self.digests.get(s, {})) < blocks)

    def has(self, seat: int, part: int) -> bool:
        """Whether all blocks of a part of an owner are there."""
        return self.digests.get(seat, {}).keys() >= set(self.manifest.blocks_of(part))

    def request(self, seat: int) -> bytes:
        """U2, and what its members dealt to `seat`."""
        u2, matrix = tuple(sorted(self.deals)), self.adverts.holders(self.manifest)
        sealed, commitments = [], []
        for dealer in u2:
            if dealer != seat and matrix[dealer, seat]:
                place = place_of_holder(matrix, self.adverts.seats, dealer, seat)
                mine = place - (seat > dealer)  # nothing is sealed to the dealer itself
                all_sealed, all_commitments = self.deals[dealer]
                sealed.append(all_sealed[SEALED_BYTES * mine :][:SEALED_BYTES])
                commitments.append(all_commitments[COMMITMENT_BYTES * place :][:COMMITMENT_BYTES])
        message = Deliveries(self.manifest.hash, u2, b"".join(sealed), b"".join(commitments))
        return encode(message, len(self.roster))

    def on_block(self, seat: int, message: Block) -> "Collecting":
        """R2.4: a masked block, which must be in the spool before this state is saved."""
        _check_expected(self.roster, seat, sorted(self.deals))
        block, size = message.index, len(message.payload)
        if block >= self.manifest.blocks or size != self.manifest.wire_bytes(block):
            name = self.roster.name(seat)
            raise ProtocolBroken(f"'{name}' sent {size} bytes as block {block}, against the plan")
        mine = self.digests.get(seat, {})
        digest = digest_of(message.payload)
        if _is_repeated(self.roster, seat, mine.get(block), digest):
            return self
        return replace(self, digests=self.digests | {seat: mine | {block: digest}})

    def close(self) -> "Agreeing":
        """Fixes U3: the owners of whom all blocks of all parts are there."""
        u2, late = tuple(sorted(self.deals)), set(self.awaited)
        u3 = tuple(seat for seat in u2 if seat not in late)
        _check_quorum(self.manifest, self.roster, u3, "sent all their blocks")
        matrix, thresholds = self.adverts.holders(self.manifest), self.manifest.thresholds
        lonely = survivors_without_holders(matrix, u3, thresholds)
        stuck = lonely or [s for s in late if matrix[s, list(u3)].sum() < thresholds.threshold]
        if stuck:
            raise TooFewOwners(
                f"too few holders are left of the shares of '{self.roster.name(min(stuck))}'"
            )
        sets = Sets(self.adverts.digest(self.manifest.hash), self.adverts.seats, u2, u3)
        commitments = {seat: deal[1] for seat, deal in self.deals.items()}
        digests = {seat: self.digests[seat] for seat in u3}
        return Agreeing(self.manifest, self.roster, self.adverts, sets, commitments, digests, {})


@dataclass(frozen=True, slots=True)
class Agreeing:
    """R3.   commitments: to the shares that U2 dealt.   consents: signatures so far."""

    name: ClassVar[str] = "agreeing"
    manifest: SumManifest
    roster: Roster
    adverts: Adverts
    sets: Sets
    commitments: dict[int, bytes]
    digests: dict[int, dict[int, bytes]]
    consents: dict[int, bytes]

    @property
    def awaited(self) -> tuple[int, ...]:
        """Who may still answer."""
        return _without(self.sets.u3, self.consents)

    def request(self, _: int) -> bytes:
        """U3, for everybody in it."""
        return encode(Survivors(self.manifest.hash, self.sets.u3), len(self.roster))

    def on_consent(self, seat: int, message: Consent) -> "Agreeing":
        """R3.2: a signature under U1, U2 and U3."""
        _check_expected(self.roster, seat, self.sets.u3)
        if _is_repeated(self.roster, seat, self.consents.get(seat), message.signature):
            return self
        signed = statement(self.manifest, self.sets)
        verify(self.roster.members[seat], signed, message.signature)
        return replace(self, consents=self.consents | {seat: message.signature})

    def close(self) -> "OpeningRound":
        """Fixes the signatures."""
        signers = tuple(sorted(self.consents))
        _check_quorum(self.manifest, self.roster, signers, "signed the survivors")
        signatures = b"".join(self.consents[seat] for seat in signers)
        transcript = Transcript(self.manifest, self.roster, self.sets, signers, signatures)
        return OpeningRound(transcript, self.adverts, self.commitments, self.digests, {})


@dataclass(frozen=True, slots=True)
class OpeningRound:
    """R4.   openings: by seat, the shares it opened, by the seat of the dealer."""

    name: ClassVar[str] = "opening"
    transcript: Transcript
    adverts: Adverts
    commitments: dict[int, bytes]
    digests: dict[int, dict[int, bytes]]
    openings: dict[int, dict[int, Secret]]

    @property
    def manifest(self) -> SumManifest:
        """The manifest of the sum."""
        return self.transcript.manifest

    @property
    def roster(self) -> Roster:
        """The roster of the federation."""
        return self.transcript.roster

    @property
    def awaited(self) -> tuple[int, ...]:
        """Who may still answer."""
        return _without(self.transcript.sets.u3, self.openings)

    def request(self, _: int) -> bytes:
        """The signatures, for everybody in U3."""
        proof = self.transcript
        return encode(
            ConsentList(self.manifest.hash, proof.signers, proof.signatures), len(self.roster)
        )

    def on_opening(self, seat: int, message: Opening) -> "OpeningRound":
        """R4.4: the shares that `seat` holds, each as its dealer committed to it."""
        sets = self.transcript.sets
        _check_expected(self.roster, seat, sets.u3)
        matrix = self.adverts.holders(self.manifest)
        dealers = [dealer for dealer in sets.u2 if matrix[dealer, seat]]
        if len(message.shares) != SHARE_BYTES * len(dealers):
            raise ProtocolBroken(
                f"'{self.roster.name(seat)}' did not open {len(dealers)} shares, one for each "
                "owner that dealt to it"
            )
        opened = {}
        for place, dealer in enumerate(dealers):
            share = Secret(message.shares[SHARE_BYTES * place : SHARE_BYTES * (place + 1)])
            self._check_share(share, matrix, dealer, seat)
            opened[dealer] = share
        if _is_repeated(self.roster, seat, self.openings.get(seat), opened):
            return self
        return replace(self, openings=self.openings | {seat: opened})

    def close(self) -> "Unmasking":
        """Puts the secrets together, and checks each against its advert."""
        openers = tuple(sorted(self.openings))
        seeds, masking = {}, {}
        for dealer in self.transcript.sets.u2:
            if dealer in self.transcript.sets.u3:
                seeds[dealer] = self._secret(dealer)
            else:
                masking[dealer] = self._secret(dealer)
        return Unmasking(self.transcript, self.adverts, self.digests, seeds, masking, openers)

    def _secret(self, dealer: int) -> Secret:
        """b of a survivor, s_sk of an owner that dropped out."""
        threshold = self.manifest.thresholds.threshold
        shares = {
            seat + 1: opened[dealer] for seat, opened in self.openings.items() if dealer in opened
        }
        if len(shares) < threshold:
            raise TooFewOwners(
                f"{len(shares)} owners opened the shares of '{self.roster.name(dealer)}', "
                f"{threshold} must",
                hint="wait for more owners; what was opened so far shows nothing",
            )
        secret, advert = combine(shares, threshold), self.adverts[dealer]
        if dealer in self.transcript.sets.u3:
            matches = commit_to_seed(secret, self.manifest.hash, dealer) == advert.commitment
        else:
            matches = ExchangeKey(secret).public == advert.masking
        if not matches:
            raise ShareInvalid(
                f"the shares that '{self.roster.name(dealer)}' dealt do not give its secret",
                hint="the sum is lost; exclude this organisation before the next job",
            )
        return secret

    def _check_share(self, share: Secret, matrix: Holders, dealer: int, seat: int) -> None:
        sets = self.transcript.sets
        which = int(dealer not in sets.u3)
        at = COMMITMENT_BYTES * place_of_holder(matrix, sets.u1, dealer, seat) + 32 * which
        committed = self.commitments[dealer][at : at + 32]
        actual = commit_to_share(share, which, self.manifest.hash, dealer, seat)
        if actual != committed or int.from_bytes(share.reveal(), "big") >= PRIME:
            raise ShareInvalid(
                f"'{self.roster.name(seat)}' opened another share than "
                f"'{self.roster.name(dealer)}' dealt to it",
                hint="its answer is left out; the sum goes on if enough others answer",
            )


@dataclass(frozen=True, slots=True)
class Unmasking:
    """The masks are known: seeds b of survivors, masking keys s_sk of those that dropped out
    after dealing. `blindmerge_server.unmask` takes the masks off.
    """

    name: ClassVar[str] = "unmasking"
    transcript: Transcript
    adverts: Adverts
    digests: dict[int, dict[int, bytes]]
    seeds: dict[int, Secret]
    masking: dict[int, Secret]
    openers: tuple[int, ...]


OpenState: TypeAlias = Advertising | Dealing | Collecting | Agreeing | OpeningRound
"""States that take messages."""

ServerState: TypeAlias = OpenState | Unmasking

STATES: dict[str, type[ServerState]] = {
    state.name: state
    for state in (Advertising, Dealing, Collecting, Agreeing, OpeningRound, Unmasking)
}
"""By name, for what is read back from disk."""


def _without(seats: Iterable[int], answered: Collection[int]) -> tuple[int, ...]:
    return tuple(seat for seat in seats if seat not in answered)


def _check_expected(roster: Roster, seat: int, seats: Collection[int]) -> None:
    if seat not in seats:
        raise ProtocolBroken(
            f"'{roster.name(seat)}' is not, or no longer, part of this sum",
            hint="an owner that drops out is out for the rest of the job",
        )


def _is_repeated(roster: Roster, seat: int, known: object, said: object) -> bool:
    """Whether an owner said it before.   Raises ProtocolBroken if it said something else."""
    if known is not None and known != said:
        raise ProtocolBroken(f"'{roster.name(seat)}' contradicts what it said before")
    return known is not None


def _check_quorum(manifest: SumManifest, roster: Roster, seats: Sequence[int], what: str) -> None:
    if len(seats) < manifest.thresholds.quorum:
        missing = _without(range(len(roster)), seats)
        raise TooFewOwners(
            f"{len(seats)} owners {what}, {manifest.thresholds.quorum} are needed",
            hint=f"missing: {roster.names(missing)}",
        )
