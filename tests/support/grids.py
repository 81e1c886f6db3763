"""Flower without Flower's processes: a grid in memory whose nodes are functions.

    nodes = honest(job)                             # tests/support/jobs.py
    nodes[12] = misbehaving(nodes[12], is_silent, at=1)
    record = run_job(job, MemoryGrid(nodes)).record

Messages take the road that they take over HTTP: deflated to bytes and inflated again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from blindmerge.checkpoint import Checkpoint
from blindmerge.plan import Plan
from blindmerge_client.app import OwnerLike, courier
from blindmerge_client.owner import Owner
from blindmerge_server.exchanges import Kind, exchanges
from blindmerge_server.grid import StreamingGrid
from blindmerge_server.strategy import Merge
from blindmerge_server.sums import OpenSums, SecureSums, Sums
from support.jobs import NAMES, Job
from support.plans import layouts_of

__all__ = [
    "FIRST_NODE",
    "Impatient",
    "MemoryGrid",
    "Node",
    "Recorder",
    "Wrong",
    "context_of",
    "fails",
    "honest",
    "honest_until",
    "is_silent",
    "merge_of",
    "messages_of",
    "misbehaving",
    "node_of",
    "over_the_wire",
    "refuses",
    "reply_with",
    "request_of",
    "run_job",
    "sums_of",
]

Node: TypeAlias = Callable[[Message], Sequence[Message]]
"""What a node answers to a request: one message, none, or several."""
Wrong: TypeAlias = Callable[[Message, Message], Sequence[Message]]
"""What a node that does wrong answers, given the request and the honest reply."""

FIRST_NODE = 11
SERVER = 1
_WAITING_S = 1000.0  # nobody waits: nodes answer when they are asked


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


def node_of(owner: OwnerLike[Plan]) -> Node:
    """The node of an owner that answers as the product does."""
    app: ClientApp = courier(lambda _context: owner, Plan.decode)
    return lambda request: [app(request, context_of(request.metadata.dst_node_id))]


def honest(job: Job) -> dict[int, Node]:
    """Every owner of the job at its node; nodes count from FIRST_NODE."""
    return {FIRST_NODE + number: node_of(job.owner(number)) for number in range(len(job.owners))}


def misbehaving(node: Node, wrong: Wrong, at: int, kind: str = "train") -> Node:
    """The node, but for its answer to request number `at` of this kind."""
    asked: list[str] = []

    def answer(request: Message) -> Sequence[Message]:
        (reply,) = node(request)
        if request.metadata.message_type != kind:
            return [reply]
        if request.metadata.message_id not in asked:  # or it is looked for once more
            asked.append(request.metadata.message_id)
        return wrong(request, reply) if len(asked) == at + 1 else [reply]

    return answer


def reply_with(request: Message, **records: Any) -> list[Message]:
    """A reply with these records."""
    return [Message(RecordDict(dict(records)), reply_to=request)]


def is_silent(_request: Message, _reply: Message) -> list[Message]:
    """Nothing comes."""
    return []


def fails(request: Message, _reply: Message) -> list[Message]:
    """What Flower sends for a node whose process died."""
    return [Message(Error(code=3, reason="a traceback with a secret"), reply_to=request)]


def messages_of(reply: Message) -> list[bytes]:
    """What an owner says in the secure sum."""
    return [array.data for array in reply.content.array_records["answer"].values()]


def refuses(request: Message, _reply: Message) -> list[Message]:
    """The owner's policy forbids it."""
    refusal = ConfigRecord({"kind": "PolicyRefused", "reason": "see the owner's log"})
    return reply_with(request, refusal=refusal)


def sums_of(job: Job) -> Sums:
    """How the job's plan adds up; under masks with the same public bound 2^12 for all numbers."""
    plan = job.plan
    if plan.masks == "off":
        return OpenSums(plan)
    expires = int(time.time()) + 3600
    return SecureSums(plan, job.roster, layouts_of(plan), job.folder / "spool", expires)


def honest_until(job: Job, kind: Kind) -> tuple[list[Owner], tuple[bytes, ...]]:
    """Its owners, and what the server says to the first of them when this exchange begins."""
    sums, owners = sums_of(job), [job.owner(number) for number in range(len(job.owners))]
    for exchange in exchanges(job.plan)[0]:
        if exchange.kind is kind:
            return owners, sums.messages(exchange, owners[0].name)
        for owner in owners:
            messages = sums.messages(exchange, owner.name)
            sums.receive(exchange, owner.name, owner.answer(job.plan, exchange.block, messages))
        list(sums.close(exchange))
    raise AssertionError("there is no such exchange")


def merge_of(job: Job, sums: Sums | None = None, **options: Any) -> Merge:
    """The strategy of the job over `honest` nodes; it writes to `out` in the job's folder."""
    nodes = {FIRST_NODE + number: NAMES[number] for number in range(len(job.owners))}
    sums = sums_of(job) if sums is None else sums
    return Merge(job.plan, Checkpoint(job.base), job.folder / "out", nodes, sums, **options)


def run_job(
    job: Job,
    grid: "MemoryGrid",
    sums: Sums | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Merge:
    """Runs the job to its end; nodes that never answer are given up after a few looks."""
    strategy = merge_of(job, sums)
    impatient: Any = Impatient(grid, pause)
    strategy.start(impatient, ArrayRecord(), num_rounds=strategy.rounds, timeout=_WAITING_S)
    return strategy


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


class Recorder:
    """A road between server and owners that keeps every message."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def __call__(self, message: Message) -> Message:
        self.seen.append(over_the_wire(message))
        return over_the_wire(message)

    @property
    def requests(self) -> Iterator[Message]:
        """Of the server."""
        return (each for each in self.seen if not each.metadata.reply_to_message_id)

    @property
    def replies(self) -> Iterator[Message]:
        """Of the owners."""
        return (each for each in self.seen if each.metadata.reply_to_message_id)


class Impatient(StreamingGrid):
    """Ends waiting after three looks in which nothing came, without a clock."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yields replies as they come."""
        pause, looks = self._pause, [0]

        def look() -> None:
            pause()
            looks[0] += 1
            if looks[0] == 3:
                raise TimeoutError

        self._pause = look
        try:
            yield from super().send_and_receive(messages, timeout=timeout)
        except TimeoutError:
            return
        finally:
            self._pause = pause


def _identify() -> None:
    # Messages take these from their process; Flower sets them when it starts one.
    TaskIdentity.run_id = 1
    TaskIdentity.node_id = SERVER
    TaskIdentity.task_id = 1


def _numbered(message: Message, number: str) -> Message:
    message.metadata.__dict__["_message_id"] = number
    return message
