"""The owner as the courier sees it: a gateway behind a Unix socket."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy.typing as npt

from blindmerge.checkpoint import Tensors
from blindmerge.errors import ResourceMissing
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.packets import Call, decode_arrays
from blindmerge_client.refusal import NoAnswer, Refusal

__all__ = ["RemoteOwner"]

_CONNECT_S = 5.0


class RemoteOwner:
    """Answers through the gateway at a socket.

    done: called with the name of a job whose evaluation was answered.
    Raises Refusal where the gateway refuses, NoAnswer where none listens or it ends meanwhile:
    then the same may be asked again.
    """

    def __init__(self, path: Path, done: Callable[[str], None] = lambda _: None) -> None:
        # A statistic may take hours: only the connection has a limit.
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)),
            base_url="http://gateway",
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            trust_env=False,
        )
        self._path = path
        self._done = done

    @property
    def name(self) -> str:
        """The organisation's name."""
        return str(self._sent("GET", "/name", b"").json()["name"])

    def answer(
        self, plan: SignedPlan, block: int | None, messages: Sequence[bytes]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """What the owner sends."""
        call = Call(plan.encode(), block, tuple(messages))
        return decode_arrays(self._sent("POST", "/answer", call.encode()).content)

    def receive(self, plan: SignedPlan, merged: Tensors) -> None:
        """Hands merged tensors over."""
        self._sent("POST", "/receive", Call(plan.encode(), merged=merged).encode())

    def evaluate(self, plan: SignedPlan) -> Mapping[str, float]:
        """Ends the job; the scores that the owner publishes."""
        scores = self._sent("POST", "/evaluate", Call(plan.encode()).encode()).json()
        self._done(plan.plan.job)
        return dict(scores)

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()

    def _sent(self, method: str, path: str, body: bytes) -> httpx.Response:
        try:
            response = self._http.request(method, path, content=body)
        except httpx.TransportError as error:
            raise NoAnswer(f"the gateway at '{self._path}' does not answer: {error}") from error
        if response.status_code == httpx.codes.CONFLICT:
            refused = response.json()
            raise Refusal(str(refused["kind"]), str(refused["reason"]))
        if response.is_error:
            raise ResourceMissing(f"the gateway answered with HTTP {response.status_code}")
        return response
