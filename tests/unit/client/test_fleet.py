"""The node's way to the server: a message of a run with another bundle is not even fetched."""

from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from blindmerge_client.fleet import Fleet, bundle_sha256
from support.grids import request_of

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


class Server:
    """Hands out one message, of a run with this bundle; notes all that it is asked."""

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle
        self.called: list[str] = []
        self.pushed: list[Message] = []
        self.message = request_of({"plan": b"p"})
        self.message.metadata.__dict__["_message_id"] = self.message.object_id

    def PullMessages(self, _: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
        self.called.append("PullMessages")
        bare = Message(RecordDict(), dst_node_id=7, message_type="train")
        bare.metadata.__dict__.update(self.message.metadata.__dict__)
        return PullMessagesResponse(
            messages_list=[message_to_proto(bare)],
            message_object_trees=[get_object_tree(self.message)],
        )

    def GetRun(self, request: GetRunRequest) -> GetRunResponse:  # noqa: N802
        self.called.append("GetRun")
        return GetRunResponse(run=Run(run_id=request.run_id, fab_hash=self.bundle))

    def GetFab(self, _: Any) -> Any:  # noqa: N802
        raise AssertionError("a node fetches no bundle")

    def PushMessages(self, request: PushMessagesRequest) -> PushMessagesResponse:  # noqa: N802
        self.called.append("PushMessages")
        self.pushed += [message_from_proto(each) for each in request.messages_list]
        return PushMessagesResponse(objects_to_push=[])

    def __getattr__(self, name: str) -> Any:
        def asked(*_: Any) -> Any:
            self.called.append(name)
            raise LookupError(name)

        return asked


def fleet_at(server: Any) -> Fleet:
    return Fleet(server, Node(node_id=7))


@pytest.mark.parametrize("bundle", ["", "0" * 64, "upper"])
def test_a_message_of_another_bundle_is_answered_with_an_error_unread(bundle: str) -> None:
    server = Server(bundle_sha256().upper() if bundle == "upper" else bundle)
    assert fleet_at(server).receive() is None
    (error,) = server.pushed
    assert error.has_error()
    assert error.error.code == ErrorCode.INVALID_FAB
    assert server.called == ["PullMessages", "GetRun", "PushMessages"], "nothing was fetched"


def test_a_message_of_the_one_bundle_is_fetched() -> None:
    server = Server(bundle_sha256())
    with pytest.raises(Exception, match=r".*"):
        fleet_at(server).receive()
    assert server.called[:2] == ["PullMessages", "GetRun"]
    assert "PullObject" in server.called
    assert not server.pushed


def test_a_run_is_asked_about_once() -> None:
    server = Server("0" * 64)
    fleet = fleet_at(server)
    for _ in range(3):
        fleet.receive()
    assert server.called.count("GetRun") == 1
