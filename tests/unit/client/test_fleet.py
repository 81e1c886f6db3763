"""The node's way to the server: a message of a run with another bundle is not even fetched."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supernode.fleet_http_client import FleetHttpClient

from blindmerge_client.fleet import Fleet, bundle_sha256, connected
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


class Door:
    """Lets nodes in and out; a node that is in does not get in again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.inside = True  # it was killed
        self.called: list[str] = []

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_: object) -> None: ...

    def DeactivateNode(self, request: DeactivateNodeRequest) -> None:  # noqa: N802
        self.called.append("out")
        if request.node_id != self.number or not self.inside:
            raise http_error(401)
        self.inside = False

    def SendNodeHeartbeat(  # noqa: N802
        self, _: SendNodeHeartbeatRequest
    ) -> SendNodeHeartbeatResponse:
        return SendNodeHeartbeatResponse(success=self.inside)

    def ActivateNode(self, _: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802
        self.called.append("in")
        if self.inside:
            raise http_error(412)
        self.inside = True
        return ActivateNodeResponse(node_id=self.number)


def http_error(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://server/")
    return httpx.HTTPStatusError(str(code), request=request, response=httpx.Response(code))


@pytest.mark.parametrize("kept", ["7", "8", "", "seven", None])
def test_a_node_that_was_killed_says_that_it_is_gone_if_it_knows_its_number(
    kept: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    door, number = Door(7), tmp_path / "log" / "node-number"
    monkeypatch.setattr(FleetHttpClient, "from_server_address", lambda *_, **__: door)
    if kept is not None:
        number.parent.mkdir()
        number.write_text(kept)
    (tmp_path / "ca").write_bytes(b"")
    key = ec.generate_private_key(ec.SECP384R1())
    entered = connected("server:1", tmp_path / "ca", key, number)
    if kept != "7":
        with pytest.raises(httpx.HTTPStatusError, match="412"), entered:
            pass
        door.inside = False  # a minute later
        entered = connected("server:1", tmp_path / "ca", key, number)
    with entered:
        assert door.inside
        assert number.read_text() == "7"
    assert not door.inside
    assert door.called[-2:] == ["in", "out"]
