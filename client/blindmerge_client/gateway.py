"""The gateway: data, model, keys and policy of an owner, behind a Unix socket.

It has no network. The courier, which has one, and has nothing else, asks it over HTTP; every
request goes through the guard. It stays up, so the model is loaded once.

    GET  /name       {"name"}: who this owner is
    POST /answer     a call (see `packets`) -> named arrays
    POST /receive    a call with merged tensors -> nothing
    POST /evaluate   a call -> {score: number}, what the owner publishes
    each             -> 409 {"kind", "reason"}: a refusal, all of which may go to the coordinator
"""

import asyncio
import fcntl
import grp
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from blindmerge.errors import ConfigInvalid, ResourceMissing
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.guard import Guard
from blindmerge_client.packets import Call, encode_arrays
from blindmerge_client.refusal import Refusal, refusal_of

__all__ = ["Named", "Refused", "TooLong", "create_app", "serve_gateway", "stop_at_eof"]


class Named(BaseModel):
    """Who this owner is."""

    name: str


class Refused(BaseModel):
    """All that a coordinator may be told."""

    kind: str
    reason: str


class TooLong(BaseModel):
    """What is wrong with the body."""

    detail: str


_T = TypeVar("_T")
_SMALL_BYTES = 1 << 26  # more than all messages of one exchange: keys, shares, signatures
_SHUTDOWN_S = 2
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODY = {"requestBody": {"required": True, "content": _BINARY}}
_NO: dict[int | str, dict[str, Any]] = {
    409: {"model": Refused, "description": "The owner refuses, or the request is none."},
    413: {"model": TooLong, "description": "The body is longer than anything that a job sends."},
}


def create_app(guard: Guard) -> FastAPI:
    """The HTTP interface of a guard; one request at a time is read and worked on."""
    app = FastAPI(title="blindmerge gateway", docs_url=None, redoc_url=None)
    # One model, one job, and one body in memory: whoever asks meanwhile waits.
    turn = asyncio.Lock()

    async def answered(request: Request, work: Callable[[SignedPlan, Call], _T]) -> _T:
        def one(body: bytes) -> _T:
            call = Call.decode(body)
            return work(SignedPlan.decode(call.plan), call)

        async with turn:
            body = await _body(request, guard.largest_delivery + _SMALL_BYTES)
            try:
                return await asyncio.to_thread(one, body)
            except Exception as error:  # everything: no traceback leaves the machine
                raise refusal_of(error) from error

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse({"kind": refusal.kind, "reason": refusal.reason}, status_code=409)

    @app.get("/name")
    async def name() -> Named:
        return Named(name=guard.name)

    @app.post(
        "/answer",
        response_class=Response,
        openapi_extra=_BODY,
        responses={**_NO, 200: {"content": _BINARY, "description": "Named arrays."}},
    )
    async def answer(request: Request) -> Response:
        arrays = await answered(
            request, lambda signed, call: guard.answer(signed, call.block, call.messages)
        )
        return Response(encode_arrays(arrays), media_type="application/octet-stream")

    @app.post("/receive", openapi_extra=_BODY, status_code=204, responses=_NO)
    async def receive(request: Request) -> Response:
        await answered(request, lambda signed, call: guard.receive(signed, call.merged))
        return Response(status_code=204)

    @app.post("/evaluate", openapi_extra=_BODY, responses=_NO)
    async def evaluate(request: Request) -> dict[str, float]:
        return dict(await answered(request, lambda signed, _: guard.evaluate(signed)))

    return app


async def _body(request: Request, most: int) -> bytes:
    """The whole body.   Raises HTTP 413 as soon as it is too long."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, "longer than anything that a job can send")
        parts.append(part)
    return b"".join(parts)


def stop_at_eof(descriptor: int) -> None:
    """Ends this process, as SIGTERM does, when whoever holds the other end of a pipe is gone."""

    def watch() -> None:
        while os.read(descriptor, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, daemon=True).start()


def serve_gateway(guard: Guard, path: Path, group: str | None = None) -> None:
    """Serves at the Unix socket `path` until SIGTERM or Ctrl-C.

    group: of Unix, whose members may use the socket; None: nobody but this user.
    Raises ConfigInvalid if others may open the socket, or another gateway listens there.
    """
    with _listening(path, group) as listener:
        config = uvicorn.Config(
            create_app(guard), log_config=None, ws="none", timeout_graceful_shutdown=_SHUTDOWN_S
        )
        with suppress(KeyboardInterrupt):  # how people end it
            uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _listening(path: Path, group: str | None) -> Iterator[socket.socket]:
    """A socket that only this user may connect to, and the group; it goes with the block."""
    _check_folder(path.parent)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigInvalid(
                f"another gateway listens at '{path}'", hint="stop it first: Ctrl-C, or SIGTERM"
            ) from error
        _remove_old(path)
        _bind(listener, path)
        if group is not None:
            _open_to(group, path)
        yield listener
        path.unlink(missing_ok=True)
    finally:
        listener.close()
        os.close(lock)


def _bind(listener: socket.socket, path: Path) -> None:
    before = os.umask(0o177)  # 0600 from the first moment on
    try:
        listener.bind(str(path))
    except OSError as error:
        raise ResourceMissing(
            f"the gateway cannot listen at '{path}': {error.strerror or error}",
            hint="the path of a socket has at most 107 bytes; set another `socket`",
        ) from error
    finally:
        os.umask(before)


def _open_to(group: str, path: Path) -> None:
    """Lets a group use the socket.   Raises ConfigInvalid unless this user is a member."""
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except (KeyError, PermissionError) as error:
        why = "there is no such group" if isinstance(error, KeyError) else "you are no member"
        raise ConfigInvalid(
            f"the group '{group}' cannot be given the gateway's socket: {why}",
            hint="set another `socket_group` in client.toml, or make the group",
        ) from error
    path.chmod(0o660)


def _remove_old(path: Path) -> None:
    """Removes the socket of a gateway that was killed.   Raises ConfigInvalid for other files."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigInvalid(
                f"'{path}' is there, and is no socket",
                hint="set another `socket` in client.toml",
            )
        path.unlink()


def _check_folder(folder: Path) -> None:
    """Raises ConfigInvalid if somebody else could put another socket in its place."""
    found, itself = folder.stat(), folder.lstat()  # it may be a link, which could be put elsewhere
    theirs = not {found.st_uid, itself.st_uid} <= {os.getuid(), 0}
    if theirs or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigInvalid(
            f"others may write to '{folder}', where the gateway's socket is",
            hint=f"chmod go-w '{folder}', or set another `socket` in client.toml",
        )
