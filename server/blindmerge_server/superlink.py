"""`server run`: Flower's SuperLink, closed to everybody but owners and the coordinator.

Flower's own command starts any app that somebody who reaches the port sends to it, on this
machine. Here nobody does: the SuperLink launches no apps (isolation "process"), its Control API
takes requests with the coordinator's token only, tasks are handed out against the same secret,
and nodes enter with a registered key. All of it goes over TLS, on one port.
"""

import hashlib
import hmac
import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import uvicorn
from flwr.common.constant import (
    ACCESS_TOKEN_KEY,
    HEARTBEAT_DEFAULT_INTERVAL,
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.supercore import sql_mixin
from flwr.supercore.auth.typing import (
    AccountAuthCredentials,
    AccountAuthLoginDetails,
    AccountInfo,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.auth_plugin import ControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from blindmerge.errors import BlindmergeError, ResourceMissing
from blindmerge.log_file import log_to_file
from blindmerge.secagg.secret import Secret
from blindmerge.settings import check_private
from blindmerge_server.config import Home, OwnerKeys

__all__ = ["CoordinatorOnly", "access_token", "serve"]

_log = logging.getLogger("blindmerge.server")
_LOOK_FOR_OWNERS_S = 2.0
_SHUTDOWN_S = 5
_WRITERS_MS = 60_000


def access_token(control: Secret) -> str:
    """The bearer token of the coordinator's commands."""
    return hmac.new(control.reveal(), b"blindmerge/1 control api", hashlib.sha256).hexdigest()


class CoordinatorOnly(ControlAuthnPlugin):
    """Lets in whoever knows the coordinator's token, and nobody else."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        """Whether the token is right, and whose account it is."""
        given = dict(metadata).get(ACCESS_TOKEN_KEY, b"")
        given = given.encode() if isinstance(given, str) else given
        if not hmac.compare_digest(given, self._token):
            return False, None
        # The account that Flower's own tables start with.
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)

    def get_login_details(self) -> AccountAuthLoginDetails | None:
        """Nobody logs in."""
        return None

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        """Nobody logs in."""
        del device_code
        return None

    def refresh_tokens(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[Sequence[tuple[str, str | bytes]] | None, AccountInfo | None]:
        """Tokens do not expire."""
        del metadata
        return None, None


def serve(home: Home, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or Ctrl-C.   say: shows a line to a person.

    Raises ConfigInvalid if the folder is not complete, ResourceMissing if the port is taken.
    """
    config = _config(home)
    log_to_file(home.log_file)
    _wait_for_writers()
    app = create_app(config, SuperLinkLifespan)
    state = app.state.linkstate_factory.state()
    _let_in(state, home.owners(), say)
    _forget_connections(state)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            ssl_keyfile=config.ssl_keyfile,
            ssl_certfile=config.ssl_certfile,
            log_config=None,
            ws="none",
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
    )
    stop, certificate = threading.Event(), _Certificate(home, say)
    certificate.look(None)

    def look() -> None:
        certificate.look(server.config.ssl if server.started else None)

    watcher = threading.Thread(target=_watch, args=(state, home, say, look, stop), daemon=True)
    watcher.start()
    say(f"listening on {config.host}:{config.port}; log in {home.log_file}")
    try:
        server.run()
    except SystemExit as error:  # uvicorn's, when it cannot listen
        raise ResourceMissing(
            f"the server cannot listen on {config.host}:{config.port}",
            hint=f"another program may use the port; see {home.log_file}",
        ) from error
    except KeyboardInterrupt:
        pass  # how people end a server
    finally:
        stop.set()
        watcher.join()
    say("stopped")


def _wait_for_writers() -> None:
    """Makes Flower's database wait longer than its 5 s, which large uploads at once exceed.

    Owners whose uploads failed would send them again, only to meet there again.
    """
    theirs: Any = sql_mixin
    theirs.SQLITE_PRAGMAS = (*theirs.SQLITE_PRAGMAS, ("busy_timeout", str(_WRITERS_MS)))


def _config(home: Home) -> SuperLinkLifespanConfig:
    settings, control = home.settings(), home.control()
    check_private(home.key_file)
    files = (home.authority_file, home.certificate_file, home.key_file)
    authority, certificate, key = (file.read_bytes() for file in files)
    return SuperLinkLifespanConfig(
        control_address="",  # these four are of Flower's older transports, which are not started
        fleet_api_address=None,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        health_server_address=None,
        host=settings.listen,
        port=settings.port,
        insecure=False,
        certificates=(authority, certificate, key),
        superexec_auth_secret=control.reveal(),
        authn_plugin=CoordinatorOnly(access_token(control)),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        simulation=False,
        ssl_ca_certfile=str(home.authority_file),
        ssl_certfile=str(home.certificate_file),
        ssl_keyfile=str(home.key_file),
        database=str(home.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )


def _let_in(state: Any, owners: Sequence[OwnerKeys], say: Callable[[str], None]) -> None:
    """Registers the nodes of these owners, and of nobody else."""
    known = {
        info.public_key: info.node_id
        for info in state.get_node_info(owner_aids=[NOOP_FLWR_AID])
        if info.status != "unregistered"
    }
    wanted = {public_key_to_bytes(owner.node_key()): owner.name for owner in owners}
    for key, name in wanted.items():
        if key not in known:
            state.create_node(
                NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL, name=name
            )
            say(f"the node of '{name}' may enter")
    for key, node in known.items():
        if key not in wanted:
            state.delete_node(NOOP_FLWR_AID, node)
            say("the node of an owner that was removed may not enter any more")


def _forget_connections(state: Any) -> None:
    """A server that was killed left nodes behind as connected, which could not enter again."""
    for node in state.get_node_info(owner_aids=[NOOP_FLWR_AID]):
        if node.status == "online":
            state.deactivate_node(node.node_id)


class _Certificate:
    """The server's certificate: a renewed one is put in use, and its end is told once a day."""

    def __init__(self, home: Home, say: Callable[[str], None]) -> None:
        self._home, self._say = home, say
        self._used = home.certificate_file.read_bytes()
        self._said = ""

    def look(self, context: ssl.SSLContext | None) -> None:
        """context: of the connections that begin from now on; None before there are any."""
        home = self._home
        found = home.certificate_file.read_bytes()
        if context is not None and found != self._used:
            context.load_cert_chain(home.certificate_file, home.key_file)
            self._used = found
            self._say("the renewed certificate is in use")
        wrong = home.trouble(datetime.now(UTC))
        if wrong and wrong != self._said:
            self._say(f"WARNING: {wrong}")
        self._said = wrong


def _watch(
    state: Any,
    home: Home,
    say: Callable[[str], None],
    look: Callable[[], None],
    stop: threading.Event,
) -> None:
    """Lets in owners that are added while the server runs.   look: after its certificate."""
    seen: tuple[OwnerKeys, ...] = ()
    while not stop.wait(_LOOK_FOR_OWNERS_S):
        try:
            owners = home.owners()
            if owners != seen:
                _let_in(state, owners, say)
                seen = owners
            look()
        except BlindmergeError as error:
            _log.error("%s %s", error.message, error.hint)
        except OSError as error:  # also of OpenSSL: a certificate that is being replaced
            _log.error("the server's certificate: %s", error)
