"""Servers of the product in a thread of this process, ended as a signal would end them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

__all__ = ["serving"]

_STOP_S = 30


@contextmanager
def serving(serve: Callable[[], None]) -> Iterator[None]:
    """Runs `serve`, which runs a uvicorn server until it is told to stop, while the block runs.

    The block begins when the server listens.
    """
    servers: list[uvicorn.Server] = []
    failures: list[BaseException] = []
    startup = uvicorn.Server.startup

    async def noted(server: uvicorn.Server, sockets: Any = None) -> None:
        await startup(server, sockets)
        servers.append(server)

    def run() -> None:
        try:
            serve()
        except BaseException as error:
            failures.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.Server, "startup", noted)
        thread = threading.Thread(target=run)
        thread.start()
        while not servers and thread.is_alive():
            thread.join(0.005)
    try:
        yield
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(_STOP_S)
        assert not thread.is_alive(), "the server did not stop"
        assert not failures, failures
