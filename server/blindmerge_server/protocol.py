"""The server's machine for one secure sum: no I/O, no clock, no randomness (SPEC §6).

    state = start(manifest, roster)
    for seat in state.awaited: send(seat, state.request(seat))
    state = receive(state, seat, data)          # for every message
    state = state.close(); save(encode_state(state))

and so on for five rounds. Save before the next request is sent: what was closed stays closed.
Who is silent in a round has dropped out. `Unmasking` takes the masks off the sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blindmerge.errors import JobAborted, PeerInvalid, ProtocolBroken
from blindmerge.identity import Roster
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import (
    Block,
    Consent,
    Deal,
    Limits,
    Message,
    MyAdvert,
    Opening,
    parse,
)
from blindmerge.secagg.persist import dump, load
from blindmerge.secagg.transitions import SERVER, next_state
from blindmerge_server.states import (
    STATES,
    Advertising,
    Agreeing,
    Collecting,
    Dealing,
    OpeningRound,
    OpenState,
    ServerState,
)

__all__ = ["decode_state", "encode_state", "read", "receive", "start", "take"]

_LABEL = "blindmerge/1 server"


@dataclass(frozen=True, slots=True)
class _Saved:
    label: str
    name: str
    state: bytes


def start(
    manifest: SumManifest, roster: Roster, allowed: Sequence[int] | None = None
) -> Advertising:
    """R0.1.   allowed: seats still in the job, after the first phase; all by default."""
    seats = range(len(roster)) if allowed is None else allowed
    if manifest.roster != roster.sha256.hex() or manifest.thresholds.owners != len(roster):
        raise ProtocolBroken("the manifest is for another roster")
    return Advertising(manifest, roster, tuple(sorted(seats)), {})


def receive(state: OpenState, seat: int, data: bytes) -> OpenState:
    """The state after a message of the owner at `seat`, as the transport authenticated it.

    The same message again changes nothing. Raises PeerInvalid naming the owner, and leaves
    the state as it was; whoever sent it counts as silent until it says something valid.
    """
    return take(state, seat, read(state, seat, data))


def read(state: OpenState, seat: int, data: bytes) -> Message:
    """A message of the owner at `seat`.   Raises ProtocolBroken, naming it, if it is none."""
    try:
        return parse(data, Limits.of(state.manifest))
    except PeerInvalid as error:
        raise ProtocolBroken(f"'{state.roster.name(seat)}': {error.message}") from error


def take(state: OpenState, seat: int, message: Message) -> OpenState:
    """The state after a message that was read (see `receive`)."""
    if message.manifest_hash != state.manifest.hash:
        raise ProtocolBroken(f"'{state.roster.name(seat)}' speaks of another manifest")
    next_state(SERVER, state.name, message.kind)
    match state, message:
        case Advertising(), MyAdvert():
            return state.on_advert(seat, message)
        case Dealing(), Deal():
            return state.on_deal(seat, message)
        case Collecting(), Block():
            return state.on_block(seat, message)
        case Agreeing(), Consent():
            return state.on_consent(seat, message)
        case OpeningRound(), Opening():
            return state.on_opening(seat, message)
    raise AssertionError("the table of transitions has a row that is not written")


def encode_state(state: ServerState) -> bytes:
    """The bytes to store."""
    return dump(_Saved(_LABEL, state.name, dump(state)))


def decode_state(data: bytes) -> ServerState:
    """The state that was stored.   Raises JobAborted if the bytes are damaged."""
    saved = load(_Saved, data)
    if saved.label != _LABEL or saved.name not in STATES:
        raise JobAborted("the saved state is not that of a secure sum")
    return load(STATES[saved.name], saved.state)
