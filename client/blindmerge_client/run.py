"""`client run`: the gateway in a process of its own, and the courier in this one.

The courier holds the network connection and no data; it imports neither torch nor transformers.
Whatever ends, a job goes on where it was when both are started again.
"""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
)

from blindmerge.errors import ConfigInvalid, ResourceMissing
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.app import courier
from blindmerge_client.config import Client, Home
from blindmerge_client.fleet import Fleet, connected, read_node_key
from blindmerge_client.remote import RemoteOwner

__all__ = ["log_to_file", "run_client", "run_node"]

_log = logging.getLogger("blindmerge.client")
_LOG_BYTES, _LOG_FILES = 10 << 20, 3
_POLL_S = 0.5
_RECONNECT_S = 5.0
_FORGET_S = 3.0  # longer than a server takes to see that a node is gone
_GATEWAY_START_S = 120.0
_GATEWAY_STOP_S = 10.0
_LOST = (httpx.HTTPError, ObjectPullError, ObjectPushError, ObjectUnavailableError)


def log_to_file(home: Home) -> None:
    """What blindmerge and Flower have to say goes to the owner's log, which is rotated."""
    home.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = RotatingFileHandler(home.log_file, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per look for messages
    flower = logging.getLogger("flwr")
    flower.handlers, flower.propagate = [], True


def run_client(home: Home, once: bool, say: Callable[[str], None]) -> None:
    """Gateway and node, until Ctrl-C or SIGTERM.   once: until one job is done.

    Raises ConfigInvalid for mistakes in the owner's files, ResourceMissing if the gateway ends.
    """
    client = home.client()
    client.check(home.client_file)
    home.policy()
    log_to_file(home)
    with _gateway(home, client.socket) as gateway:
        say(f"gateway of '{client.name}' at {client.socket}; log in {home.log_file}")
        _serve(home, client, once, say, gateway.poll)


def run_node(home: Home, once: bool, say: Callable[[str], None]) -> None:
    """The node alone, where the gateway runs elsewhere on this machine.   Raises likewise."""
    log_to_file(home)
    _serve(home, home.client(), once, say, lambda: None)


def _serve(
    home: Home,
    client: Client,
    once: bool,
    say: Callable[[str], None],
    gateway_ended: Callable[[], int | None],
) -> None:
    key = read_node_key(home.node_file)
    if not client.ca.is_file():
        raise ConfigInvalid(
            f"there is no certificate authority '{client.ca}'",
            hint="get ca.crt from the coordinator, over a channel that both of you trust",
        )
    done = threading.Event()

    def job_done(job: str) -> None:
        say(f"job '{job}' is done: blindmerge client evaluate {home.folder}")
        if once:
            done.set()

    owner = RemoteOwner(client.socket, job_done)
    app = courier(lambda _: owner, SignedPlan.decode)
    lost = ""
    while not done.is_set():
        try:
            with _entered(client, key) as fleet:
                say(f"connected to {client.server}; waiting for jobs")
                lost = ""
                _answer(fleet, app, done, gateway_ended)
        except _LOST as error:
            _log.warning("no connection to %s: %s", client.server, error)
            if (reason := _why(error)) != lost:
                say(f"no connection to {client.server}: {reason}; trying again")
                lost = reason
            if not done.wait(_RECONNECT_S):
                _check(gateway_ended)


@contextmanager
def _entered(client: Client, key: EllipticCurvePrivateKey) -> Iterator[Fleet]:
    """A node of which the server knows that it lost all messages before.

    Flower hands a message out once. What a node was given before it was killed would be waited for
    in vain; a node that says that it is gone lets the server ask again.
    """
    with connected(client.server, client.ca, key):
        pass
    time.sleep(_FORGET_S)
    with connected(client.server, client.ca, key) as fleet:
        yield fleet


def _answer(
    fleet: Fleet, app: ClientApp, done: threading.Event, gateway_ended: Callable[[], int | None]
) -> None:
    while not done.is_set():
        _check(gateway_ended)
        message = fleet.receive()
        if message is None:
            done.wait(_POLL_S)
            continue
        context = Context(message.metadata.run_id, 0, {}, RecordDict(), {})
        fleet.send(app(message, context))


def _check(gateway_ended: Callable[[], int | None]) -> None:
    if gateway_ended() is not None:
        raise ResourceMissing("the gateway ended", hint="its last words are above and in its log")


def _why(error: Exception) -> str:
    """For a person, without what only a log needs."""
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            return "it does not know this node (blindmerge server add-owner)"
        return f"HTTP {error.response.status_code}"
    return str(error)[:200] or type(error).__name__


@contextmanager
def _gateway(home: Home, path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The gateway's process, listening; it ends with the block."""
    words = [sys.executable, "-m", "blindmerge", "client", "gateway", str(home.folder)]
    # A session of its own: Ctrl-C goes to this process, which ends the other in order.
    process = subprocess.Popen(words, start_new_session=True)  # noqa: S603
    try:
        owner, deadline_s = RemoteOwner(path), time.monotonic() + _GATEWAY_START_S
        while True:
            try:
                _ = owner.name
                break
            except ResourceMissing:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise ResourceMissing(
                        "the gateway did not start", hint="its last words are above"
                    ) from None
                time.sleep(_POLL_S)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GATEWAY_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
