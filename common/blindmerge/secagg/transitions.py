"""The transitions of both machines, as tables (SPEC §6).

The machines look every message up here; what has no row is refused and changes nothing. The
diagrams of SPEC.md are drawn from these tables (`mermaid`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blindmerge.errors import ProtocolBroken

__all__ = ["OWNER", "SERVER", "Transition", "mermaid", "next_state"]


@dataclass(frozen=True, slots=True)
class Transition:
    """In state `source`, `event` (a message's kind, or what the machine's own side does)
    leads to `target`; `step` of SPEC §6.
    """

    source: str
    event: str
    target: str
    step: str


OWNER = (
    Transition("idle", "propose", "advertised", "R0"),
    Transition("advertised", "adverts", "shared", "R1"),
    Transition("shared", "deliveries", "ready", "R2"),
    Transition("ready", "own input", "masked", "R2"),
    Transition("masked", "own input", "masked", "R2"),
    Transition("masked", "survivors", "agreed", "R3"),
    Transition("agreed", "consents", "revealed", "R4"),
)

SERVER = (
    Transition("advertising", "advert", "advertising", "R0"),
    Transition("advertising", "close", "dealing", "R0"),
    Transition("dealing", "deal", "dealing", "R1"),
    Transition("dealing", "close", "collecting", "R1"),
    Transition("collecting", "block", "collecting", "R2"),
    Transition("collecting", "close", "agreeing", "R2"),
    Transition("agreeing", "consent", "agreeing", "R3"),
    Transition("agreeing", "close", "opening", "R3"),
    Transition("opening", "opening", "opening", "R4"),
    Transition("opening", "close", "unmasking", "R4"),
)


def next_state(table: Sequence[Transition], source: str, event: str) -> str:
    """Where `event` leads from `source`.

    Raises ProtocolBroken if the table has no such row.
    """
    for row in table:
        if (row.source, row.event) == (source, event):
            return row.target
    raise ProtocolBroken(
        f"'{event}' cannot come in the state '{source}'",
        hint="messages were reordered, or the other side runs another version",
    )


def mermaid(table: Sequence[Transition]) -> str:
    """The table as a state diagram in the language of mermaid."""
    lines = ["stateDiagram-v2", f"    [*] --> {table[0].source}"]
    lines += [f"    {row.source} --> {row.target}: {row.step} {row.event}" for row in table]
    return "\n".join([*lines, f"    {table[-1].target} --> [*]"])
