"""An owner's seat in the secure sums of one job: the machine, its journal, and the session.

The machine (`OwnerJob`) decides what may be said, the journal stores it before it is said,
and the session computes what goes under the masks, one part at a time.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blindmerge.encoding import Ring
from blindmerge.errors import PeerInvalid, PolicyRefused
from blindmerge.identity import Identity, Roster
from blindmerge.plan import Plan
from blindmerge.secagg.manifest import LEAST_OWNERS, SumManifest, Terms
from blindmerge.secagg.messages import Limits, encode
from blindmerge.secagg.secret import OsRandomness
from blindmerge_client.journal import Journal
from blindmerge_client.protocol import OwnerJob
from blindmerge_client.rounds import Masker, encode_part
from blindmerge_client.session import Session

__all__ = ["Membership", "Seat"]


@dataclass(frozen=True)
class Membership:
    """What an owner pins, and no plan or server can change.

    identity: the owner's own.   roster: with whom it is ready to be summed.
    least_owners: in a sum, 3 or more.   colluders: of how many owners, in league with the
    server, it must stay safe; None: a third of the roster, a tenth above 100.   attempts: how
    often one sum may be tried.
    """

    identity: Identity
    roster: Roster
    least_owners: int = LEAST_OWNERS
    colluders: int | None = None
    attempts: int = 3

    def terms(self, plan: Plan) -> Terms:
        """What this owner demands of the sums of a plan.

        Raises PolicyRefused if the plan shows the server every owner's statistic.
        """
        if plan.masks == "off":
            raise PolicyRefused(
                "the plan has no masks: the server would see this owner's statistics",
                hint="ask the coordinator for a plan with masks",
            )
        return Terms(
            self.roster,
            plan.sha256,
            plan.base,
            least_owners=self.least_owners,
            colluders=self.colluders,
            attempts=self.attempts,
        )


class Seat:
    """Answers the messages of the server in one job.

    Raises PolicyRefused if the plan has no masks, PeerInvalid if the owner is not in the roster.
    """

    def __init__(self, membership: Membership, session: Session) -> None:
        self._session = session
        plan, roster = session.plan, membership.roster
        limits = Limits.up_to(len(roster), plan.longest_manifest_bytes)
        terms = membership.terms(plan)
        roster.seat(membership.identity.member)
        self._empty = OwnerJob(plan.job, membership.identity, terms, limits)
        self._journal = Journal(session.folder / "seat.state")
        self._owners = len(roster)

    def answer(self, messages: Sequence[bytes], block: int | None) -> Iterator[bytes]:
        """What this owner says to these messages, in order.

        block: of the plan; its part is what is masked when masked input is asked for.
        Raises PeerInvalid, PolicyRefused or JobAborted; nothing more is said then.
        """
        for data in messages:
            yield from self._said(data, block)

    def _said(self, data: bytes, block: int | None) -> Iterator[bytes]:
        # Another process of this owner may have answered before, or be asked at this moment:
        # nothing is kept in memory, and one at a time goes from a state to the next.
        with self._journal.held():
            job = self._journal.load(self._empty)
            job = job.receive(data, now=int(time.time()), rng=OsRandomness())
            phase = job.phase_of(data)
            self._check(job.runs[phase].state.manifest)
            if job.state(phase) in ("ready", "masked"):
                masker, part, rings = self._fixed(job, phase, block)
            else:
                reply = job.reply(phase, self._journal.save(job))
                return iter(() if reply is None else (reply,))
        return self._masked(masker, part, rings)

    def _fixed(
        self, job: OwnerJob, phase: int, block: int | None
    ) -> tuple[Masker, int, list[Ring]]:
        """One part: computed, fixed and stored; its masks, its number, and its numbers."""
        blocks = self._session.plan.phases[phase]
        if block not in blocks:
            raise PeerInvalid("masked input of a block was asked for that is not in this sum")
        part = blocks.index(block)
        manifest = job.runs[phase].state.manifest
        rings = encode_part(manifest, part, self._session.contribute(block))
        job = job.commit_part(phase, part, rings)
        return job.masker(phase, self._journal.save(job)), part, rings

    def _masked(self, masker: Masker, part: int, rings: list[Ring]) -> Iterator[bytes]:
        cores = len(os.sched_getaffinity(0))
        for masked in masker.blocks(part, rings, threads=cores):
            yield encode(masked, self._owners)

    def _check(self, manifest: SumManifest) -> None:
        """The manifest is the plan's, whose hash the terms have checked; and so are its parts."""
        expected = self._session.plan.sum_manifest(
            manifest.phase, manifest.parts, attempt=manifest.attempt, expires=manifest.expires
        )
        if manifest != expected:
            raise PeerInvalid("the manifest of the sum is not the one of the plan")
