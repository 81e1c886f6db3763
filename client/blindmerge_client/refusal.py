"""What a coordinator is told when an owner does not answer."""

import logging

from blindmerge.errors import BlindmergeError, PeerInvalid, PolicyRefused

__all__ = ["NoAnswer", "Refusal", "refusal_of"]

_log = logging.getLogger("blindmerge.client")
_ELSE = "see the owner's log"


class NoAnswer(Exception):
    """The owner cannot be reached, so nothing is said: the coordinator would drop it for good."""


class Refusal(Exception):
    """Instead of an answer. kind: name of the error's class.   reason: what may be told."""

    def __init__(self, kind: str, reason: str = _ELSE) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason


def refusal_of(error: Exception) -> Refusal:
    """The refusal that an error becomes; the error itself goes to the owner's log.

    The coordinator learns the kind, and the reason only if the fault is its own or lies in its
    plan: other messages speak of an owner's files.
    """
    if isinstance(error, Refusal):
        return error
    if not isinstance(error, BlindmergeError):
        _log.error("unexpected error", exc_info=error)
        return Refusal("InternalError")
    kind = type(error).__name__
    _log.error("%s: %s %s", kind, error.message, error.hint)
    if isinstance(error, PeerInvalid):
        return Refusal(kind, str(error))
    told = error.told if isinstance(error, PolicyRefused) else ""
    return Refusal(kind, told or _ELSE)
