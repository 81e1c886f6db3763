"""A deployment whose server and owners are hosts of their own, all running.

with networked(tmp_path, pico_material(tmp_path)) as (network, federation):
    federation.merge()
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.deployment import Deployment
from support.material import Material
from support.network import Link, Network, why_no_network

__all__ = ["networked"]


@contextmanager
def networked(
    folder: Path,
    material: Material,
    method: str = '{ name = "regmean", rows_factor = 1.0 }',
    link: Link | None = None,
    others: tuple[str, ...] = (),
) -> Iterator[tuple[Network, Deployment]]:
    """Skips the test, and says why, where no namespaces can be made.

    others: further hosts, on which nothing runs.
    """
    if why := why_no_network():
        pytest.skip(why)
    with (
        Network("server", *material.names, *others, link=link) as network,
        Deployment(
            folder,
            host=network.address("server"),
            method=method,
            inside=network.inside,
            material=material,
        ) as federation,
    ):
        federation.start("server", *federation.names)
        yield network, federation
