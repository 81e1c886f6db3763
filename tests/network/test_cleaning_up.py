"""What a test run that was killed leaves behind is gone after the next one."""

import os
import subprocess
import sys

import pytest

from support.network import Network, why_no_network
from support.processes import environment, wait_until

_DIES = """
import os, subprocess, sys
from support.network import Network
network = Network("left")
network.__enter__()
words = [*network.inside("left"), "sleep", "600"]
print(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid, flush=True)
os._exit(1)
"""


def test_namespaces_and_processes_of_a_killed_run_are_removed_by_the_next() -> None:
    if why := why_no_network():
        pytest.skip(why)
    died = subprocess.run(
        [sys.executable, "-c", _DIES], capture_output=True, text=True, env=environment()
    )
    left = int(died.stdout)
    assert os.path.exists(f"/proc/{left}"), died.stderr
    with Network("anna"):
        listed = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
        assert "-left" not in listed
        assert "-anna" in listed
        wait_until(lambda: not os.path.exists(f"/proc/{left}"), "the process to be gone")
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert f"blindmerge-{os.getpid()}-" not in listed
