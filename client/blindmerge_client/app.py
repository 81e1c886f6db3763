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
fault, or a rule that its plan breaks: messages about an owner's files are for the owner's own log.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from blindmerge.checkpoint import Tensors
from blindmerge.errors import PeerInvalid
from blindmerge.wire import from_wire, to_wire
from blindmerge_client.refusal import NoAnswer, refusal_of

__all__ = ["NO_BLOCK", "OwnerLike", "courier"]

NO_BLOCK = -1
_Plan = TypeVar("_Plan")
_AnyPlan = TypeVar("_AnyPlan", contravariant=True)


class OwnerLike(Protocol[_AnyPlan]):
    """What the courier asks of an owner; plans are signed where owner and server are strangers."""

    @property
    def name(self) -> str:
        """Who it is."""

    def answer(
        self, plan: _AnyPlan, block: int | None, messages: Sequence[bytes]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """What the owner sends, by name."""

    def receive(self, plan: _AnyPlan, merged: Tensors) -> None:
        """Keeps merged tensors."""

    def evaluate(self, plan: _AnyPlan) -> Mapping[str, float]:
        """The scores of the merged model that the owner publishes; may be empty."""


@dataclass(frozen=True, slots=True)
class _Request(Generic[_Plan]):
    plan: _Plan
    block: int | None
    messages: Sequence[bytes]
    merged: Tensors


def courier(
    owner_of: Callable[[Context], OwnerLike[_Plan]], read_plan: Callable[[bytes], _Plan]
) -> ClientApp:
    """A ClientApp for the owner that `owner_of` finds for a node's context.

    read_plan: `Plan.decode`, or `SignedPlan.decode` where requests hold signed plans.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _guarded(
            message, lambda: _contribution(_read(message, read_plan), owner_of(context))
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _guarded(message, lambda: _evaluation(_read(message, read_plan), owner_of(context)))

    @app.query("name")
    def name(message: Message, context: Context) -> Message:
        return _guarded(
            message, lambda: RecordDict({"owner": ConfigRecord({"name": owner_of(context).name})})
        )

    return app


def _contribution(request: _Request[_Plan], owner: OwnerLike[_Plan]) -> RecordDict:
    if request.merged:
        owner.receive(request.plan, request.merged)
    answer = owner.answer(request.plan, request.block, request.messages)
    arrays = {name: Array(*to_wire(array)) for name, array in answer.items()}
    return RecordDict({"answer": ArrayRecord(arrays)})


def _evaluation(request: _Request[_Plan], owner: OwnerLike[_Plan]) -> RecordDict:
    owner.receive(request.plan, request.merged)
    return RecordDict({"scores": MetricRecord(dict(owner.evaluate(request.plan)))})


def _guarded(message: Message, make: Callable[[], RecordDict]) -> Message:
    try:
        content = make()
    except NoAnswer:
        raise
    except Exception as error:
        # Everything: Flower would send the text of an unknown exception to the server.
        refusal = refusal_of(error)
        record = ConfigRecord({"kind": refusal.kind, "reason": refusal.reason})
        content = RecordDict({"refusal": record})
    return Message(content, reply_to=message)


def _read(message: Message, read_plan: Callable[[bytes], _Plan]) -> _Request[_Plan]:
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
    return _Request(read_plan(encoded), None if block == NO_BLOCK else block, said, tensors)
