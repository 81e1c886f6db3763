"""Why a client has no connection, in words for the one who can mend it."""

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from blindmerge_client.trouble import why_not_connected
from blindmerge_server.certificates import Credentials, make_credentials

NOW = datetime.datetime.now(datetime.UTC)
YEARS = datetime.timedelta(days=800)


@contextmanager
def serving(made: Credentials, folder: Path) -> Iterator[int]:
    """A port behind which a server shows this certificate, once."""
    (folder / "crt").write_bytes(made.certificate)
    (folder / "key").write_bytes(made.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            # The client may not like what it is shown.
            with listener.accept()[0] as plain, suppress(OSError):
                context.wrap_socket(plain, server_side=True).close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join()


@pytest.mark.parametrize(
    ("at", "host", "trusted", "told"),
    [
        (NOW - YEARS, "127.0.0.1", True, "the coordinator renews it (blindmerge server renew)"),
        (NOW + YEARS, "127.0.0.1", True, "not valid yet: compare clocks"),
        (NOW, "127.0.0.9", True, "is for another address: compare `server`"),
        (NOW, "127.0.0.1", False, "not by the authority that you trust"),
    ],
)
def test_a_certificate_is_refused_in_words(
    at: datetime.datetime, host: str, trusted: bool, told: str, tmp_path: Path
) -> None:
    made = make_credentials("uni", [host], at)
    authority = made.authority if trusted else make_credentials("uni", [host], at).authority
    context = ssl.create_default_context(cadata=authority.decode())
    with (
        serving(made, tmp_path) as port,
        pytest.raises(httpx.ConnectError) as caught,
    ):
        httpx.get(f"https://127.0.0.1:{port}/", verify=context, trust_env=False)
    assert told in why_not_connected(caught.value)


@pytest.mark.parametrize(
    ("code", "told"), [(401, "does not know"), (412, "its last connection"), (500, "HTTP 500")]
)
def test_an_answer_that_is_an_error_is_told(code: int, told: str) -> None:
    request = httpx.Request("POST", "https://server/")
    error = httpx.HTTPStatusError("", request=request, response=httpx.Response(code))
    assert told in why_not_connected(error)
    assert why_not_connected(httpx.ReadTimeout("")) == "ReadTimeout"
