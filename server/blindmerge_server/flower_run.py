"""A Flower run whose ServerApp is this process.

Flower would load a ServerApp from a bundle in a process of its own. A coordinator's command is
there already: it starts a run with a bundle that holds no code, takes the run's task over
against the coordinator's secret, and is given a grid.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from blindmerge.bundle import BUNDLE_FILES
from blindmerge.errors import ResourceMissing
from blindmerge_server.config import Home
from blindmerge_server.superlink import access_token

__all__ = ["ServerGone", "bundle", "flower_run", "nodes", "nodes_online"]

_COMPONENT = "blindmerge server"
_LOOK_FOR_TASK_S = 0.5


def bundle() -> Fab:
    """The bundle of every blindmerge run: the same bytes at both sides."""
    content, _ = build_fab_from_files(BUNDLE_FILES)
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


class ServerGone(ResourceMissing):
    """No server answers, or it refuses the coordinator's commands."""


class _Bearer:
    """Shows the coordinator's token with every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers["authorization"] = f"Bearer {self._token}"
        return call_next(context)


@contextmanager
def flower_run(home: Home, pause: Callable[[float], None] = time.sleep) -> Iterator[HttpGrid]:
    """The grid of a new run; the run ends with the block. What an earlier command left is ended.

    Raises ServerGone if the server does not answer or refuses.
    """
    address = f"{home.settings().connect}:{home.settings().port}"
    authority, secret = home.authority_file.read_bytes(), home.control()
    version = RuntimeVersionHttpInterceptor(component_name=_COMPONENT)
    control = _control(home)
    runtime = RuntimeHttpClient.from_server_address(
        address,
        False,
        authority,
        [
            version,
            SuperExecAuthHttpInterceptor(
                master_secret=secret.reveal(),
                protected_methods={"/flwr.proto.Runtime/AcquireTask"},
            ),
        ],
    )
    try:
        _end_runs(control)
        run = control.StartRun(StartRunRequest(fab=fab_to_proto(bundle()))).run_id
        token = _task_token(runtime, run, pause)
    except httpx.HTTPError as error:
        raise _unreachable(home, address, error) from error
    finally:
        runtime.close()
        control.close()
    with _grid(address, authority, token) as grid:
        yield grid


def nodes(home: Home) -> Sequence[NodeInfo]:
    """The registered nodes; their names are those of owners, known by their keys.

    Raises ServerGone if the server does not answer or refuses.
    """
    control = _control(home)
    try:
        return list(control.ListNodes(ListNodesRequest()).nodes_info)
    except httpx.HTTPError as error:
        address = f"{home.settings().connect}:{home.settings().port}"
        raise _unreachable(home, address, error) from error
    finally:
        control.close()


def nodes_online(home: Home) -> dict[int, str]:
    """Owner by node, of those that are connected.   Raises as `nodes` does."""
    return {node.node_id: node.name for node in nodes(home) if node.status == "online"}


def _control(home: Home) -> ControlHttpClient:
    """The server's Control API, with the coordinator's token."""
    return ControlHttpClient.from_server_address(
        f"{home.settings().connect}:{home.settings().port}",
        False,
        home.authority_file.read_bytes(),
        [
            RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
            _Bearer(access_token(home.control())),
        ],
    )


def _unreachable(home: Home, address: str, error: httpx.HTTPError) -> ServerGone:
    if isinstance(error, httpx.HTTPStatusError):
        return ServerGone(
            f"the server at {address} refuses this command (HTTP {error.response.status_code})",
            hint=f"is it the server of '{home.folder}'? See {home.log_file}",
        )
    if "certificate has expired" in str(error):
        return ServerGone(
            f"the certificate of the server at {address} has ended",
            hint=f"renew it: blindmerge server renew {home.folder}",
        )
    return ServerGone(
        f"no server answers at {address}: {error}",
        hint=f"start it in another terminal: blindmerge server run {home.folder}",
    )


def _end_runs(control: ControlHttpClient) -> None:
    runs = control.ListRuns(ListRunsRequest()).run_dict
    for number, run in runs.items():
        if run.status.status != Status.FINISHED:
            control.StopRun(StopRunRequest(run_id=number))


def _task_token(runtime: RuntimeHttpClient, run: int, pause: Callable[[float], None]) -> str:
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    while True:
        answer = runtime.AcquireTask(request)
        if answer.HasField("task") and answer.task.run_id == run:
            return str(answer.token)
        pause(_LOOK_FOR_TASK_S)


def _tried_again(beat: Callable[[], bool]) -> Callable[[], bool]:
    """A heartbeat that a busy server failed to answer is sent again; it would be Flower's last."""

    def patient() -> bool:
        try:
            return beat()
        except httpx.HTTPStatusError:
            return False

    return patient


@contextmanager
def _grid(address: str, authority: bytes, token: str) -> Iterator[HttpGrid]:
    grid = HttpGrid(address, root_certificates=authority, token=token)
    heartbeat = HeartbeatSender(_tried_again(make_task_heartbeat_fn_http(grid._runtime_client)))
    heartbeat.start()
    status = SubStatus.FAILED
    try:
        task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = task.task_id
        TaskIdentity.run_id = task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        grid.set_run(run_from_proto(task.run))
        yield grid
        status = SubStatus.COMPLETED
    finally:
        heartbeat.stop()
        grid._retry_invoker.max_tries = 1  # whoever stopped the job does not wait for a server
        with suppress(httpx.HTTPError):
            grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status))
        grid.close()
