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
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
)
from rich.console import Console

from blindmerge.errors import ConfigInvalid, ResourceMissing
from blindmerge.log_file import log_to_file
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.app import courier
from blindmerge_client.config import Client, Home
from blindmerge_client.fleet import Fleet, connected, read_node_key
from blindmerge_client.progress import Meters
from blindmerge_client.refusal import NoAnswer
from blindmerge_client.remote import RemoteOwner
from blindmerge_client.trouble import why_not_connected

__all__ = ["run_client", "run_node"]

_log = logging.getLogger("blindmerge.client")
_POLL_S = 0.5
_AGAIN_S = 5.0
_FORGET_S = 3.0  # longer than a server takes to see that a node is gone
_GATEWAY_STOP_S = 10.0
_LOST = (httpx.HTTPError, ObjectPullError, ObjectPushError, ObjectUnavailableError)
Say = Callable[[str], None]


def run_client(home: Home, once: bool, say: Say) -> None:
    """Gateway and node, until Ctrl-C or SIGTERM.   once: until one job is done.

    Raises ConfigInvalid for mistakes in the owner's files, ResourceMissing if the gateway ends.
    """
    client = home.client()
    client.check(home.client_file)
    home.policy()
    log_to_file(home.log_file)
    with _until_stopped(say), _gateway(home, client.socket) as gateway:
        say(f"gateway of '{client.name}' at {client.socket}")
        say(f"logs in {home.log_file.parent}")
        _Node(home, client, once, say, gateway.poll).serve()


def run_node(home: Home, once: bool, say: Say) -> None:
    """The node alone, where the gateway runs elsewhere on this machine.   Raises likewise."""
    log_to_file(home.log_file)
    with _until_stopped(say):
        _Node(home, home.client(), once, say, lambda: None).serve()


class _Node:
    """Carries messages between the server and the gateway.

    gateway_ended: its exit code, or None while it runs or nobody knows.
    """

    def __init__(
        self, home: Home, client: Client, once: bool, say: Say, gateway_ended: Callable[[], object]
    ) -> None:
        if not client.ca.is_file():
            raise ConfigInvalid(
                f"there is no certificate authority '{client.ca}'",
                hint="get ca.crt from the coordinator, over a channel that both of you trust",
            )
        self._home, self._client, self._once, self._say = home, client, once, say
        self._key = read_node_key(home.node_file)
        self._gateway_ended = gateway_ended
        self._ended: list[str] = []  # jobs whose last answer is not sent yet
        owner = RemoteOwner(client.socket, self._ended.append)
        self._app = courier(lambda _: owner, SignedPlan.decode)
        self._done = threading.Event()
        self._trouble = ""

    def serve(self) -> None:
        """Until a job is done, if once; else for ever."""
        while not self._done.is_set():
            try:
                with _entered(self._client, self._key, self._home.node_number_file) as fleet:
                    self._say(f"connected to {self._client.server}; waiting for jobs")
                    self._trouble = ""
                    self._answer(fleet)
            except _LOST as error:
                self._wait(
                    f"no connection to {self._client.server}: {why_not_connected(error)}", error
                )

    def _answer(self, fleet: Fleet) -> None:
        while not self._done.is_set():
            self._check_gateway()
            try:
                message = fleet.receive()
                if message is not None:
                    fleet.send(self._reply(message))
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.FORBIDDEN:
                    raise
                # The coordinator stopped the run; whoever asks next, asks in another.
                _log.info("a message of a run that was stopped: %s", error)
                continue
            if message is None:
                self._done.wait(_POLL_S)
            for job in self._ended:
                self._say(f"job '{job}' is done: blindmerge client evaluate {self._home.folder}")
                if self._once:
                    self._done.set()
            self._ended.clear()

    def _reply(self, message: Message) -> Message:
        """The owner's; a gateway that is not there is waited for."""
        while True:
            try:
                context = Context(message.metadata.run_id, 0, {}, RecordDict(), {})
                reply = self._app(message, context)
                self._trouble = ""
                return reply
            except NoAnswer as error:
                self._wait(str(error), error)

    def _wait(self, trouble: str, error: Exception) -> None:
        """Says what the trouble is, once, and lets some time pass."""
        _log.warning("%s (%s)", trouble, error)
        if trouble != self._trouble:
            self._say(f"{trouble}; trying again")
            self._trouble = trouble
        self._check_gateway()
        self._done.wait(_AGAIN_S)

    def _check_gateway(self) -> None:
        if self._gateway_ended() is not None:
            raise ResourceMissing(
                "the gateway ended", hint="its last words are above, or in gateway.log"
            )


@contextmanager
def _until_stopped(say: Say) -> Iterator[None]:
    """Ctrl-C and SIGTERM are how people and systems end a client."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped; a job that was going on waits for the next start")
    finally:
        Console().show_cursor()  # which the bar of a gateway that was stopped hides


@contextmanager
def _entered(client: Client, key: EllipticCurvePrivateKey, number: Path) -> Iterator[Fleet]:
    """A node of which the server knows that it lost all messages before.

    Flower hands a message out once. What a node was given before it was killed would be waited for
    in vain; a node that says that it is gone lets the server ask again.
    """
    with connected(client.server, client.ca, key, number):
        pass
    time.sleep(_FORGET_S)
    with connected(client.server, client.ca, key, number, Meters().meter) as fleet:
        yield fleet


@contextmanager
def _gateway(home: Home, path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The gateway's process, listening; it ends with the block, or when this process dies."""
    # Not from the working folder (-P): what lies there is not this installation.
    words = [sys.executable, "-P", "-m", "blindmerge", "client", "gateway", "--until-eof"]
    # A session of its own: Ctrl-C goes to this process, which ends the other in order.
    process = subprocess.Popen(  # noqa: S603
        [*words, str(home.folder)], stdin=subprocess.PIPE, start_new_session=True
    )
    owner = RemoteOwner(path)
    try:
        while not _listens(owner):
            if process.poll() is not None:
                raise ResourceMissing("the gateway did not start", hint="its last words are above")
            time.sleep(_POLL_S)
        yield process
    finally:
        owner.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GATEWAY_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _listens(owner: RemoteOwner) -> bool:
    try:
        return bool(owner.name)
    except NoAnswer:
        return False
