"""A network like between continents, and a cable that somebody trips over."""

import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from support.jobs import NAMES
from support.material import pico_material
from support.network import Link, Network, why_no_network
from support.networked import networked
from support.processes import wait_until

pytestmark = pytest.mark.network

_SLOW = Link(delay_ms=200, loss=0.02)
_PACKETS = 2000
_SILENCE_S = 5.0
_SEND = f"""
import socket, sys, time
host, port = sys.argv[1].split(":")
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range({_PACKETS}):
    out.sendto(b"x", (host, int(port)))
    time.sleep(0.0005)
"""


def test_the_link_delays_each_way_and_loses_what_it_says() -> None:
    if why := why_no_network():
        pytest.skip(why)
    with Network("server", "anna", link=_SLOW) as network:

        def knock() -> float:
            began_s = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((network.address("server"), 9), timeout=30)
            return time.monotonic() - began_s

        assert network.call("anna", knock) >= 2 * _SLOW.delay_ms / 1000

        def count() -> int:
            came = 0
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as incoming:
                incoming.bind(("", 0))
                incoming.settimeout(_SILENCE_S)
                target = f"{network.address('server')}:{incoming.getsockname()[1]}"
                words = [*network.inside("anna"), sys.executable, "-c", _SEND, target]
                with subprocess.Popen(words), suppress(TimeoutError):
                    while incoming.recv(1):
                        came += 1
            return came

        came = network.call("server", count)
    # Five standard deviations of a binomial count.
    spread = 5 * (_PACKETS * _SLOW.loss * (1 - _SLOW.loss)) ** 0.5
    assert abs(_PACKETS * (1 - _SLOW.loss) - came) <= spread


def test_a_job_ends_well_at_200_ms_and_2_percent_loss(tmp_path: Path) -> None:
    with networked(tmp_path, pico_material(tmp_path), link=_SLOW) as (_, federation):
        done = federation.merge(timeout_s=900)
        assert done.returncode == 0, done.stdout + done.stderr
        report = (federation.server.jobs / "my-job-1" / "report.json").read_text()
        assert report.count('"missing": null') == len(NAMES[:3])


def test_an_owner_whose_cable_was_out_for_a_while_goes_on(tmp_path: Path) -> None:
    with networked(tmp_path, pico_material(tmp_path)) as (network, federation):
        federation.start_merge()
        federation.wait_for("merge", "[2/8]")
        with network.cut_off("bert"):
            federation.wait_for("bert", "no connection to")
        merge = federation.running["merge"]
        wait_until(lambda: merge.poll() is not None, "the end of the job")
        assert merge.returncode == 0, federation.printed("merge")
        report = (federation.server.jobs / "my-job-1" / "report.json").read_text()
        assert report.count('"missing": null') == len(NAMES[:3])
