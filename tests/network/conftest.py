"""Federations over a real network, for the tests of this folder."""

from collections.abc import Iterator

import pytest

from support.deployment import Deployment
from support.material import pico_material
from support.network import Network
from support.networked import networked

__all__ = ["Place"]

Place = tuple[Network, Deployment]
_STRANGER = "stranger"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Three owners with pico models and a server, all running; and the host of a stranger.

    The data may be used for any number of jobs, so that each test has one of its own.
    """
    folder = tmp_path_factory.mktemp("federation")
    with networked(folder, pico_material(folder), others=(_STRANGER,)) as (network, federation):
        for name in federation.names:
            federation.edit_policy(name, {"max_jobs": 1000})
        yield network, federation


@pytest.fixture
def federation(place: Place) -> Deployment:
    """The deployment of the place."""
    return place[1]


@pytest.fixture
def network(place: Place) -> Network:
    """The network of the place."""
    return place[0]
