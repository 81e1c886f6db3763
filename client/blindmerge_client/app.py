"""The courier: a Flower ClientApp that carries messages between the server and the owner.

It decides nothing and holds nothing. Requests and replies:

    train       request {plan, block, messages}, merged tensors that the owner does not have yet
                -> the owner's answer: messages of the secure sum as bytes, or, in a
                   job without masks, its statistic of the block
    evaluate    request {plan}, the merged tensors that the owner does not have yet
                -> the scores that the owner publishes
    query.name  -> {name}: who the owner says it is; the secure sum believes signatures alone
    each        -> refusal {kind, reason} if it went wrong

`block` is the number of the plan's block whose statistic is asked for, or -1.
A refusal tells the server no more than its kind, and the reason if the server itself is at
fault: messages about an owner's files are for the owner's own log.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from blindmerge.checkpoint import Tensors
from blindmerge.errors import BlindmergeError, PeerInvalid
from blindmerge.plan import Plan
from blindmerge.wire import from_wire, to_wire

__all__ = ["NO_BLOCK", "OwnerLike", "courier"]

_log = logging.getLogger("blindmerge.client")
NO_BLOCK = -1


class OwnerLike(Protocol):
    """What the courier asks of an owner."""

    name: str

    def answer(
        self, plan: Plan, block: int | None, messages: Sequence[bytes]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """What the owner sends, by name."""

    def receive(self, plan: Plan, merged: Tensors) -> None:
        """Keeps merged tensors."""

    def evaluate(self, plan: Plan) -> Mapping[str, float]:
        """The scores of the merged model that the owner publishes; may be empty."""


@dataclass(frozen=True, slots=True)
class _Request:
    plan: Plan
    block: int | None
    messages: Sequence[bytes]
    merged: Tensors


def courier(owner_of: Callable[[Context], OwnerLike]) -> ClientApp:
    """A ClientApp for the owner that `owner_of` finds for a node's context."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answer(message, lambda: owner_of(context), _contribution)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(message, lambda: owner_of(context), _evaluation)

    @app.query("name")
    def name(message: Message, context: Context) -> Message:
        return _guarded(
            message, lambda: RecordDict({"owner": ConfigRecord({"name": owner_of(context).name})})
        )

    return app


def _contribution(owner: OwnerLike, request: _Request) -> RecordDict:
    if request.merged:
        owner.receive(request.plan, request.merged)
    answer = owner.answer(request.plan, request.block, request.messages)
    arrays = {name: Array(*to_wire(array)) for name, array in answer.items()}
    return RecordDict({"answer": ArrayRecord(arrays)})


def _evaluation(owner: OwnerLike, request: _Request) -> RecordDict:
    owner.receive(request.plan, request.merged)
    return RecordDict({"scores": MetricRecord(dict(owner.evaluate(request.plan)))})


def _answer(
    message: Message,
    find_owner: Callable[[], OwnerLike],
    handle: Callable[[OwnerLike, _Request], RecordDict],
) -> Message:
    def content() -> RecordDict:
        request = _read(message)
        return handle(find_owner(), request)

    return _guarded(message, content)


def _guarded(message: Message, make: Callable[[], RecordDict]) -> Message:
    try:
        content = make()
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


def _read(message: Message) -> _Request:
    """Raises PeerInvalid if it is no request."""
    if not message.has_content():
        raise PeerInvalid("the request is empty")
    request = message.content.config_records.get("request", ConfigRecord())
    encoded, block = request.get("plan"), request.get("block", NO_BLOCK)
    messages = request.get("messages", [])
    if type(encoded) is not bytes or type(block) is not int or not isinstance(messages, list):
        raise PeerInvalid("the request has no plan, or no block and messages")
    said = [each for each in messages if type(each) is bytes]
    if len(said) < len(messages):
        raise PeerInvalid("a message in the request is not bytes")
    merged = message.content.array_records.get("merged", ArrayRecord())
    tensors = {
        name: from_wire(array.dtype, array.shape, array.stype, array.data)
        for name, array in merged.items()
    }
    plan = Plan.decode(encoded)
    return _Request(plan, None if block == NO_BLOCK else block, said, tensors)
