"""The courier's way to the coordinator's server: Flower's Fleet API over TLS.

Flower's own node unpacks the bundle of a run and starts a process with the code in it. This one
runs no code but its own: it compares the bundle's hash with that of the bundle that this
installation would build, and answers messages of no other run.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Error, Message
from flwr.app.message.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from blindmerge.bundle import BUNDLE_FILES
from blindmerge.errors import ConfigInvalid
from blindmerge_client.progress import Meter, unmetered

__all__ = ["Fleet", "bundle_sha256", "connected", "read_node_key"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def bundle_sha256() -> str:
    """The hash of the only bundle whose runs are answered."""
    content, _ = build_fab_from_files(BUNDLE_FILES)
    return hashlib.sha256(content).hexdigest()


def read_node_key(path: Path) -> EllipticCurvePrivateKey:
    """The key with which the node enters.   Raises ConfigInvalid if it is missing or another."""
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigInvalid(
            f"{path}: cannot be read: {error.strerror}", hint="run `blindmerge client init` first"
        ) from error
    except ValueError as error:
        raise ConfigInvalid(f"{path}: is no key", hint="restore it from a backup") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise ConfigInvalid(f"{path}: is not a key on the curve P-384", hint="restore it")
    return key


class Fleet:
    """A node that has entered. Raises httpx.HTTPError where the server does not answer.

    meter: shows how far a message is that takes long.
    """

    def __init__(self, client: FleetHttpClient, node: Node, meter: Meter = unmetered) -> None:
        self._client = client
        self._meter = meter
        self._node = node
        self._bundle = bundle_sha256()
        self._known: dict[int, bool] = {}

    def receive(self) -> Message | None:
        """The next message of a run with our bundle; another run's gets an error, unread."""
        answer = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        head, tree = message_from_proto(answer.messages_list[0]), answer.message_object_trees[0]
        run = head.metadata.run_id
        if not self._ours(run):
            reason = "the bundle is not that of the installed blindmerge"
            self.send(Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=head))
            return None
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run)
        with self._meter("receiving", sum(1 for _ in iterate_object_tree(tree))) as done:
            message: Message = pull_and_inflate_object_from_tree(
                tree,
                _then(pull, done),
                make_confirm_message_received_fn_protobuf(
                    self._client.ConfirmMessageReceived, self._node, run
                ),
                return_type=Message,
            )
        # The bytes of a message do not hold their own hash, which is its id.
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def send(self, message: Message) -> None:
        """Sends a reply."""
        message.metadata.__dict__["_message_id"] = message.object_id
        run = message.metadata.run_id
        with no_object_id_recompute():
            bare = remove_content_from_message(message) if message.has_content() else message
            answer = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(bare)],
                    message_object_trees=[get_object_tree(message)],
                    clientapp_runtime_list=[0.0],
                )
            )
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, run, answer.session_id
            )
            with self._meter("sending", len(answer.objects_to_push)) as done:
                push_objects(
                    get_all_nested_objects(message),
                    _then(push, done),
                    object_ids_to_push=set(answer.objects_to_push),
                )

    def _ours(self, run: int) -> bool:
        if run not in self._known:
            found = self._client.GetRun(GetRunRequest(node=self._node, run_id=run)).run
            self._known[run] = found.fab_hash == self._bundle
        return self._known[run]


@contextmanager
def connected(
    address: str,
    authority: Path,
    key: EllipticCurvePrivateKey,
    number: Path,
    meter: Meter = unmetered,
) -> Iterator[Fleet]:
    """A node in the fleet of the server at `address`.

    authority: file of the certificate authority of the server, the only one that is trusted.
    number: file in which the node's number at the server is kept. A server lets a node in again
    when it knows that it is gone, and would wait a minute for one that was killed: with its
    number the node can say so.
    meter: shows how far a message is that takes long.
    Raises httpx.HTTPError if the server does not answer, is another, or does not know the key.
    """
    with FleetHttpClient.from_server_address(
        address,
        False,
        authority.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    ) as client:
        _leave(client, number)
        entered = client.ActivateNode(
            ActivateNodeRequest(
                public_key=public_key_to_bytes(key.public_key()),
                heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL,
            )
        )
        node = Node(node_id=entered.node_id)
        number.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number.write_text(str(node.node_id))
        heartbeat = HeartbeatSender(lambda: _alive(client, node))
        heartbeat.start()
        try:
            yield Fleet(client, node, meter)
        finally:
            heartbeat.stop()
            with suppress(httpx.HTTPError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))


def _then(work: Callable[_P, _T], done: Callable[[], None]) -> Callable[_P, _T]:
    """The same work; afterwards `done` is called."""

    def both(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        result = work(*args, **kwargs)
        done()
        return result

    return both


def _leave(client: FleetHttpClient, number: Path) -> None:
    """What was connected under this number before is gone. A number of another server is none."""
    with suppress(FileNotFoundError, ValueError, httpx.HTTPStatusError):
        client.DeactivateNode(DeactivateNodeRequest(node_id=int(number.read_text())))


def _alive(client: FleetHttpClient, node: Node) -> bool:
    request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    try:
        return bool(client.SendNodeHeartbeat(request).success)
    except httpx.HTTPError:
        return False
