"""The courier: a Flower ClientApp that carries messages between the server and the owner.

It decides nothing and holds nothing. Requests and replies:

    train       request {plan, phase}, the merged tensors of the phase before (if there is one)
                -> the statistic of the phase
    evaluate    request {plan, phase: the last}, its merged tensors
                -> the scores that the owner publishes
    either      -> refusal {kind, reason}

A refusal tells the server no more than its kind, and the reason if the server itself is at
fault: messages about an owner's files are for the owner's own log.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from blindmerge.checkpoint import Tensors
from blindmerge.errors import BlindmergeError, PeerInvalid
from blindmerge.plan import Plan
from blindmerge.statistic import Statistic
from blindmerge.wire import from_wire, to_wire

__all__ = ["OwnerLike", "courier"]

_log = logging.getLogger("blindmerge.client")


class OwnerLike(Protocol):
    """What the courier asks of an owner."""

    def contribute(self, plan: Plan, phase: int) -> Statistic:
        """The owner's statistic for a phase."""

    def receive(self, plan: Plan, phase: int, merged: Tensors) -> None:
        """Keeps the merged tensors of a phase."""

    def evaluate(self, plan: Plan) -> Mapping[str, float]:
        """The scores of the merged model that the owner publishes; may be empty."""


def courier(owner_of: Callable[[Context], OwnerLike]) -> ClientApp:
    """A ClientApp for the owner that `owner_of` finds for a node's context."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answer(message, lambda: owner_of(context), _contribution)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(message, lambda: owner_of(context), _evaluation)

    return app


def _contribution(owner: OwnerLike, plan: Plan, phase: int, merged: Tensors) -> RecordDict:
    if merged:
        owner.receive(plan, phase - 1, merged)
    statistic = owner.contribute(plan, phase)
    arrays = {name: Array(*to_wire(array)) for name, array in statistic.arrays.items()}
    return RecordDict({"statistic": ArrayRecord(arrays)})


def _evaluation(owner: OwnerLike, plan: Plan, phase: int, merged: Tensors) -> RecordDict:
    if phase != len(plan.phases) - 1:
        raise PeerInvalid("the scores are those of the last phase's model")
    owner.receive(plan, phase, merged)
    return RecordDict({"scores": MetricRecord(dict(owner.evaluate(plan)))})


def _answer(
    message: Message,
    find_owner: Callable[[], OwnerLike],
    handle: Callable[[OwnerLike, Plan, int, Tensors], RecordDict],
) -> Message:
    try:
        request = _read(message)
        content = handle(find_owner(), *request)
    except Exception as error:
        # Everything: Flower would send the text of an unknown exception to the server.
        content = RecordDict({"refusal": _refusal(error)})
    return Message(content, reply_to=message)


def _refusal(error: Exception) -> ConfigRecord:
    if isinstance(error, BlindmergeError):
        kind = type(error).__name__
        _log.error("%s: %s %s", kind, error.message, error.hint)
    else:
        kind = "InternalError"
        _log.error("unexpected error", exc_info=error)
    reason = str(error) if isinstance(error, PeerInvalid) else "see the owner's log"
    return ConfigRecord({"kind": kind, "reason": reason})


def _read(message: Message) -> tuple[Plan, int, Tensors]:
    """The request: plan, phase and merged tensors. Raises PeerInvalid if it is none."""
    if not message.has_content():
        raise PeerInvalid("the request is empty")
    request = message.content.config_records.get("request")
    encoded = request.get("plan") if request is not None else None
    phase = request.get("phase") if request is not None else None
    if type(encoded) is not bytes or type(phase) is not int:
        raise PeerInvalid("the request has no plan or no phase")
    merged = message.content.array_records.get("merged", ArrayRecord())
    tensors = {
        name: from_wire(array.dtype, array.shape, array.stype, array.data)
        for name, array in merged.items()
    }
    return Plan.decode(encoded), phase, tensors
