"""A courier that talks nonsense: the gateway refuses, and nothing is computed, said or stored."""

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge_client.gateway import create_app
from blindmerge_client.guard import Guard
from blindmerge_client.packets import Call
from support.deployment import Deployment, free_port
from support.threads import serving


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def url(federation: Deployment) -> Iterator[str]:
    """The gateway's app over TCP: for schemathesis, which speaks to no Unix socket."""
    logging.getLogger("blindmerge.client").setLevel(logging.CRITICAL)
    app, port = create_app(Guard(federation.owners["anna"])), free_port()
    config = uvicorn.Config(app, port=port, ws="none", log_config=None)
    with serving(uvicorn.Server(config).run):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def schema(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False) as client:
        yield client


def nothing_happened(federation: Deployment) -> None:
    assert not list(federation.owners["anna"].jobs.glob("*/*")), "a job was stored"


def test_whatever_the_api_is_sent_the_answer_is_one_that_it_promises(
    schema: Any, federation: Deployment
) -> None:
    operations = [each.ok() for each in schema.get_all_operations()]
    assert sorted(each.path for each in operations) == ["/answer", "/evaluate", "/name", "/receive"]
    for operation in operations:

        @settings(max_examples=20, deadline=None)
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.call_and_validate()

        check()
    nothing_happened(federation)


def refused(response: httpx.Response) -> str:
    assert response.status_code == 409, response.text
    assert set(response.json()) == {"kind", "reason"}
    return str(response.json()["kind"])


@pytest.mark.parametrize("path", ["/answer", "/receive", "/evaluate"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_call_with_broken_bytes_is_refused(
    http: httpx.Client, federation: Deployment, path: str, data: st.DataObject
) -> None:
    call = Call(federation.signed().encode(), 0, (b"message",), {"a": np.ones(2)}).encode()
    place = data.draw(st.integers(0, len(call) - 1))
    broken = (
        call[:place] + bytes([call[place] ^ data.draw(st.integers(1, 255))]) + call[place + 1 :]
    )
    kind = refused(http.post(path, content=broken))
    assert kind != "InternalError"
    said = federation.owners["anna"].jobs.glob("*/seat.state")
    assert not list(said), "something was answered"
