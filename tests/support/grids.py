"""Flower without Flower's processes: a grid in memory whose nodes are functions.

    grid = MemoryGrid({7: app_of(owner), 8: lambda request: []})
    Merge(plan, base, out, {7: "a", 8: "b"}).start(StreamingGrid(grid, pause), ...)

Messages take the road that they take over HTTP: deflated to bytes and inflated again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from blindmerge_client.app import OwnerLike, courier

__all__ = ["MemoryGrid", "Node", "context_of", "node_of", "over_the_wire", "request_of"]

Node: TypeAlias = Callable[[Message], Sequence[Message]]
"""What a node answers to a request: one message, none, or several."""

SERVER = 1


def request_of(
    content: Mapping[str, Any] | None, merged: ArrayRecord | None = None, kind: str = "train"
) -> Message:
    """A request as a server would send it, with an id.   content: of its `request` record."""
    _identify()
    records: dict[str, ArrayRecord | ConfigRecord] = {}
    if content is not None:
        records["request"] = ConfigRecord(dict(content))
    if merged is not None:
        records["merged"] = merged
    return _numbered(Message(RecordDict(dict(records)), dst_node_id=7, message_type=kind), "ask-1")


def node_of(owner: OwnerLike) -> Node:
    """The node of an owner that answers as the product does."""
    app: ClientApp = courier(lambda _context: owner)
    return lambda request: [app(request, context_of(request.metadata.dst_node_id))]


def context_of(node: int, **config: Any) -> Context:
    """The context of a ClientApp at a node."""
    return Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})


def over_the_wire(message: Message) -> Message:
    """The message after its way through bytes."""
    objects = get_all_nested_objects(message)
    contents = {name: each.deflate() for name, each in objects.items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    return _numbered(arrived, message.metadata.message_id)


class MemoryGrid(Grid):
    """A node answers when its reply is asked for, not before: so it is with a slow network.

    pulled: the nodes whose replies were taken, in order.
    """

    def __init__(self, nodes: Mapping[int, Node], road: Any = over_the_wire) -> None:
        _identify()
        self.nodes = dict(nodes)
        self.pulled: list[int] = []
        self._road = road
        self._waiting: dict[str, Message] = {}
        self._count = 0

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        """There is one run."""
        raise NotImplementedError

    def create_message(self, *_args: Any, **_kwargs: Any) -> Message:
        """Deprecated in Flower."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Whoever is there."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes requests; goes through them twice, as Flower's grid over HTTP does."""
        for message in messages:
            self._count += 1
            _numbered(message, f"message-{self._count}")
        for message in messages:
            self._waiting[message.metadata.message_id] = self._road(message)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        replies = []
        for sent in sorted(set(message_ids) & self._waiting.keys()):
            request = self._waiting[sent]
            for reply in self.nodes[request.metadata.dst_node_id](request):
                replies.append(self._road(reply))
                self._waiting.pop(sent, None)
                self.pulled.append(request.metadata.dst_node_id)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Flower's own way: everything first."""
        del timeout
        return list(self.pull_messages(self.push_messages(messages)))


def _identify() -> None:
    # Messages take these from their process; Flower sets them when it starts one.
    TaskIdentity.run_id = 1
    TaskIdentity.node_id = SERVER
    TaskIdentity.task_id = 1


def _numbered(message: Message, number: str) -> Message:
    message.metadata.__dict__["_message_id"] = number
    return message
