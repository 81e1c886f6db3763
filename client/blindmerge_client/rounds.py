"""An owner's steps in one run: what it checks, and the state it goes to (SPEC §6).

Pure functions of a state and a message. A message that fails a check raises and leaves the
state as it was.
"""

from collections.abc import Iterator, Sequence

from blindmerge.encoding import Ring, to_wire
from blindmerge.errors import JobAborted, ProtocolBroken, ShareInvalid, TooFewOwners
from blindmerge.identity import Identity, Roster
from blindmerge.secagg.adverts import Advert, check_adverts, commit_to_seed
from blindmerge.secagg.digests import digest_of
from blindmerge.secagg.keys import (
    KEY_BYTES,
    LABEL_SHARE,
    ExchangeKey,
    block_key,
    derive,
    pair_key,
    seal,
    unseal,
)
from blindmerge.secagg.manifest import SumManifest, Terms
from blindmerge.secagg.masks import apply_masks
from blindmerge.secagg.messages import (
    COMMITMENT_BYTES,
    SEALED_BYTES,
    AdvertList,
    Block,
    ConsentList,
    Deliveries,
    Survivors,
)
from blindmerge.secagg.secret import Randomness, Secret
from blindmerge.secagg.shamir import PRIME, SHARE_BYTES, split
from blindmerge.secagg.shares import commit_to_shares
from blindmerge.secagg.transcript import Sets, check_consents, statement
from blindmerge.statistic import Statistic
from blindmerge_client.states import Advertised, Agreed, Masked, Ready, Revealed, Shared

__all__ = [
    "Masker",
    "advertise",
    "commit_part",
    "encode_part",
    "on_adverts",
    "on_consents",
    "on_deliveries",
    "on_survivors",
]


def advertise(
    manifest: SumManifest, identity: Identity, roster: Roster, rng: Randomness
) -> Advertised:
    """R0.1: fresh keys for this run, never used in another attempt or phase."""
    seat = roster.seat(identity.member)
    sealing, masking = ExchangeKey.generate(rng), ExchangeKey.generate(rng)
    seed = Secret(rng.bytes(KEY_BYTES))
    commitment = commit_to_seed(seed, manifest.hash, seat)
    keys = (sealing.public, masking.public, commitment, rng.bytes(KEY_BYTES))
    record = Advert.sign(manifest.hash, identity, keys).encode()
    return Advertised(manifest, seat, sealing.secret, masking.secret, seed, record)


def on_adverts(state: Advertised, message: AdvertList, terms: Terms, rng: Randomness) -> Shared:
    """R1: checks everybody's keys, then splits b and s_sk and seals a share to each holder."""
    manifest, adverts, roster = state.manifest, message.adverts, terms.roster
    if state.seat not in adverts.seats or adverts[state.seat].encode() != state.record:
        raise ProtocolBroken("the server left out or changed this owner's own keys")
    _check_enough(adverts.seats, manifest, terms, "advertised keys")
    check_adverts(manifest.hash, roster, adverts)
    present = set(adverts.seats)
    row = adverts.holders(manifest)[state.seat]
    holders = [int(seat) for seat in row.nonzero()[0] if seat in present]
    threshold = manifest.thresholds.threshold
    if len(holders) < threshold:
        raise TooFewOwners(f"only {len(holders)} holders of this owner's shares are left")
    points = [seat + 1 for seat in holders]
    parts = [split(secret, threshold, points, rng) for secret in (state.seed, state.masking)]
    own_key, digest = ExchangeKey(state.sealing), adverts.digest(manifest.hash)
    sealed, commitments = [], []
    for seat in holders:
        pair = (parts[0][seat + 1], parts[1][seat + 1])
        commitments.append(commit_to_shares(pair, manifest.hash, state.seat, seat))
        if seat != state.seat:
            agreed = own_key.agree(adverts[seat].sealing)
            key = derive(agreed, LABEL_SHARE, manifest.hash, digest, state.seat, seat)
            sealed.append(seal(key, Secret(pair[0].reveal() + pair[1].reveal())))
    return Shared(
        manifest,
        state.seat,
        state.sealing,
        state.masking,
        state.seed,
        adverts,
        (parts[0][state.seat + 1], parts[1][state.seat + 1]),
        b"".join(sealed),
        b"".join(commitments),
    )


def on_deliveries(state: Shared, message: Deliveries, terms: Terms) -> Ready:
    """R2.1: opens the shares that others dealt to this owner."""
    manifest, adverts, seat = state.manifest, state.adverts, state.seat
    if not set(message.seats) <= set(adverts.seats):
        raise ProtocolBroken("an owner dealt shares that had not advertised keys")
    if seat not in message.seats:
        raise ProtocolBroken("the server left out this owner's own shares")
    _check_enough(message.seats, manifest, terms, "dealt shares")
    matrix = adverts.holders(manifest)
    if int(matrix[seat, list(message.seats)].sum()) < manifest.thresholds.threshold:
        raise TooFewOwners("too few holders of this owner's shares are left")
    dealers = [dealer for dealer in message.seats if dealer != seat and matrix[dealer, seat]]
    if len(message.sealed) != SEALED_BYTES * len(dealers):
        raise ProtocolBroken(f"{len(dealers)} dealt shares must come, another number came")
    own_key, digest = ExchangeKey(state.sealing), adverts.digest(manifest.hash)
    held = {seat: state.own}
    for place, dealer in enumerate(dealers):
        agreed = own_key.agree(adverts[dealer].sealing)
        key = derive(agreed, LABEL_SHARE, manifest.hash, digest, dealer, seat)
        held[dealer] = _open_deal(message, place, key, manifest, dealer, seat, terms.roster)
    return Ready(manifest, seat, state.masking, state.seed, adverts, message.seats, held)


def _open_deal(
    message: Deliveries,
    place: int,
    key: Secret,
    manifest: SumManifest,
    dealer: int,
    seat: int,
    roster: Roster,
) -> tuple[Secret, Secret]:
    """The pair of shares that `dealer` sealed to `seat`, if it is the pair it committed to."""
    culprit = f"'{roster.name(dealer)}', or the server that carried it,"
    sealed = message.sealed[SEALED_BYTES * place : SEALED_BYTES * (place + 1)]
    try:
        plain = unseal(key, sealed).reveal()
    except ShareInvalid as error:
        raise ShareInvalid(f"{culprit} sent shares that do not open") from error
    pair = (Secret(plain[:SHARE_BYTES]), Secret(plain[SHARE_BYTES:]))
    committed = message.commitments[COMMITMENT_BYTES * place : COMMITMENT_BYTES * (place + 1)]
    residues = all(int.from_bytes(share.reveal(), "big") < PRIME for share in pair)
    if not residues or commit_to_shares(pair, manifest.hash, dealer, seat) != committed:
        raise ShareInvalid(f"{culprit} sent other shares than it committed to")
    return pair


def encode_part(manifest: SumManifest, part: int, statistic: Statistic) -> list[Ring]:
    """The blocks of one part in the ring: what is fixed, and then masked in place.

    Raises SchemaMismatch, NotFinite or Overflow; then nothing of the part was sent.
    """
    blocks = manifest.blocks_of(part)
    return [manifest.parts[part].encode(statistic, block - blocks.start) for block in blocks]


def commit_part(state: Ready | Masked, part: int, rings: Sequence[Ring]) -> Masked:
    """R2.2: fixes one part of the input of this run.

    Raises JobAborted if the part was fixed with other numbers before.
    """
    digests = tuple(
        digest_of(ring) for _, ring in zip(state.manifest.blocks_of(part), rings, strict=True)
    )
    known = state.digests if isinstance(state, Masked) else {}
    if known.get(part, digests) != digests:
        raise JobAborted(
            f"part {part} of the input of the secure sum is not the one before the restart",
            hint="this owner must leave this attempt; nothing of the new input was sent",
        )
    return Masked(
        state.manifest,
        state.seat,
        state.masking,
        state.seed,
        state.adverts,
        state.u2,
        state.held,
        known | {part: digests},
    )


class Masker:
    """Masks the blocks of one run (R2.3); it holds the keys of this owner's pairs."""

    def __init__(self, state: Masked) -> None:
        manifest, seat = state.manifest, state.seat
        matrix = state.adverts.holders(manifest)
        own_key = ExchangeKey(state.masking)
        self._state = state
        self._plus, self._minus = [state.seed], list[Secret]()
        for peer in state.u2:
            if peer != seat and (matrix[seat, peer] or matrix[peer, seat]):
                public = state.adverts[peer].masking
                key = pair_key(own_key, public, manifest.hash, seat, peer)
                (self._plus if peer > seat else self._minus).append(key)

    def mask(self, block: int, ring: Ring, *, threads: int = 1) -> Block:
        """y = x + PRG(b) + sum of PRG(k_ij), j > i, - sum of PRG(k_ij), j < i.

        block: counted through all parts.   ring: its numbers x, which become y in place.
        Raises ProtocolBroken if the part is not fixed yet, JobAborted if these are not the
        numbers that were.
        """
        manifest = self._state.manifest
        part, index = manifest.locate(block)
        if part not in self._state.digests:
            raise ProtocolBroken(f"part {part} of the input is not fixed yet")
        if digest_of(ring) != self._state.digests[part][index]:
            raise JobAborted(
                "the input of the secure sum changed after its masks were used",
                hint="this owner must leave this attempt; nothing of the new input was sent",
            )
        plus, minus = (
            [block_key(key, manifest.hash, block) for key in keys]
            for keys in (self._plus, self._minus)
        )
        apply_masks(ring, plus, minus, manifest.prg, threads=threads)
        return Block(manifest.hash, block, to_wire(ring, manifest.parts[part].bits))

    def blocks(self, part: int, rings: Sequence[Ring], *, threads: int = 1) -> Iterator[Block]:
        """All blocks of a part, one at a time; `rings` are masked in place."""
        for block, ring in zip(self._state.manifest.blocks_of(part), rings, strict=True):
            yield self.mask(block, ring, threads=threads)


def on_survivors(state: Masked, message: Survivors, identity: Identity, terms: Terms) -> Agreed:
    """R3: signs U1, U2 and U3, once. The state must be on disk before the signature leaves."""
    manifest, u3 = state.manifest, message.seats
    if not set(u3) <= set(state.u2):
        raise ProtocolBroken("an owner is in the sum that had not dealt shares")
    if state.seat not in u3:
        raise ProtocolBroken(
            "the server counts this owner as dropped", hint="it is out for the rest of the job"
        )
    if len(state.digests) < len(manifest.parts):
        raise ProtocolBroken("the server counts this owner in before it sent all parts of the sum")
    _check_enough(u3, manifest, terms, "are in the sum")
    # No look at the graph here: an owner that U3 cuts off from its holders stays masked by
    # its b, which takes t of them (SPEC §7).
    sets = Sets(state.adverts.digest(manifest.hash), state.adverts.seats, state.u2, u3)
    signature = identity.sign(statement(manifest, sets))
    return Agreed(manifest, state.seat, sets, state.held, signature)


def on_consents(state: Agreed, message: ConsentList, terms: Terms) -> Revealed:
    """R4: opens one secret of everybody: b of survivors, s_sk of those that dropped out."""
    sets = state.sets
    check_consents(state.manifest, sets, terms.roster, message.seats, message.signatures)
    survivors = set(sets.u3)
    shares = [state.held[seat][seat not in survivors].reveal() for seat in sorted(state.held)]
    return Revealed(state.manifest, state.seat, sets, Secret(b"".join(shares)))


def _check_enough(seats: Sequence[int], manifest: SumManifest, terms: Terms, what: str) -> None:
    needed = max(manifest.thresholds.quorum, terms.least_owners)
    if len(seats) < needed:
        raise TooFewOwners(f"{len(seats)} owners {what}, {needed} are needed")
