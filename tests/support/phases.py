"""A job of many phases, whose key rounds ride on the last rounds of the phase before."""

from collections.abc import Sequence

from blindmerge.secagg.manifest import SumManifest
from blindmerge_server.protocol import start
from blindmerge_server.states import Collecting, OpeningRound, OpenState, Unmasking
from support.secure_sum import Federation, MemorySpool, Outcome

__all__ = ["run_phases"]

_RIDES_ON = {"R3": "R0", "R4": "R1"}


def run_phases(owners: Federation, manifests: Sequence[SumManifest]) -> list[Outcome]:
    """Every phase of a job: five exchanges for the first, three for each of the others."""
    outcomes = []
    now, spool = owners.advance(manifests[0], "R3")
    for ahead in (*manifests[1:], None):
        # Whoever is not in U3 cannot be in the next phase.
        u3 = now.sets.u3  # type: ignore[union-attr]
        keys: OpenState | None = None if ahead is None else start(ahead, owners.roster, u3)
        now, keys = _exchange(owners, now, keys, spool, "R3")
        signed = owners.restarted(now.close())
        advertised = None if keys is None else owners.restarted(keys.close())
        assert isinstance(signed, OpeningRound)
        assert not isinstance(advertised, Unmasking)
        opening, keys = _exchange(owners, signed, advertised, spool, "R4")
        opened = owners.restarted(opening.close())
        assert isinstance(opened, Unmasking)
        outcomes.append(Outcome.of(opened, spool))
        if keys is not None:
            spool = MemorySpool()
            dealt = owners.restarted(keys.close())
            assert isinstance(dealt, Collecting)
            agreeing = owners.restarted(owners.round(dealt, spool, "R2").close())
            assert not isinstance(agreeing, Unmasking)
            now = agreeing
    return outcomes


def _exchange(
    owners: Federation,
    now: OpenState,
    keys: OpenState | None,
    spool: MemorySpool,
    step: str,
) -> tuple[OpenState, OpenState | None]:
    """One round of a phase, and with it one of the next."""
    for seat in now.awaited:
        now = owners.exchange(now, [(seat, now.request(seat))], spool, step)
        silent = owners.is_silent(seat, now.manifest.phase, step)
        if keys is not None and seat in keys.awaited and not silent:
            keys = owners.exchange(keys, [(seat, keys.request(seat))], spool, _RIDES_ON[step])
    return now, keys
