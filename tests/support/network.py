"""Hosts with a network of their own: one namespace each, joined by a switch in another.

with Network("server", "anna", "bert") as network:
    subprocess.run([*network.inside("anna"), "ping", "-c", "1", network.address("server")])

They see each other and nothing else, this machine's network included. Leaving the block removes
all of it; what a killed test run left behind is removed by the next one.

    Network("server", "anna", link=Link(delay_ms=200, loss=0.02))

joins them by a wire that delays and loses packets instead.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TypeVar

from support.processes import environment

__all__ = ["Link", "Network", "why_no_network"]

_PREFIX = "blindmerge"
_SWITCH = "switch"
_NUMBERS = count()
_SUBNET = "10.213.7"
_FILES = Path("/etc/netns")
_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")


def why_no_network() -> str:
    """What keeps this machine from making namespaces; empty if nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command `ip` (package iproute2)"
    probe = f"{_PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"this kernel or container refuses network namespaces: {made.stderr.strip()}"
    _ip("netns", "delete", probe)
    return ""


@dataclass(frozen=True)
class Link:
    """delay_ms: each way.   loss: which part of the packets never arrives.   seed: of which."""

    delay_ms: float
    loss: float
    seed: int = 0


class Network:
    """The hosts with these names.

    link: how slow and lossy it is between them; None: a switch.   alone: hosts without a cable.
    files: what lies in /etc on every host, by name, in place of this machine's.
    names: hosts by further names, under which the others know them.
    """

    def __init__(
        self,
        *hosts: str,
        link: Link | None = None,
        alone: Sequence[str] = (),
        files: Mapping[str, str] = MappingProxyType({}),
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.hosts = hosts
        self._prefix = f"{_PREFIX}-{os.getpid()}-{next(_NUMBERS)}"
        self._link = link
        self._alone = alone
        lines = [f"{self.address(host)} {name}" for name, host in names.items()]
        known = "\n".join(["127.0.0.1 localhost", *lines, ""])
        self._files = {"hosts": known, **files}
        self._wires: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Network":
        _remove_left_over()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._remove()

    def address(self, host: str) -> str:
        """The IP address of a host."""
        return f"{_SUBNET}.{self.hosts.index(host) + 1}"

    def inside(self, host: str) -> list[str]:
        """The words before a command that runs on a host."""
        return ["ip", "netns", "exec", self._namespace(host)]

    def call(self, host: str, work: Callable[[], _T]) -> _T:
        """What `work` returns, done by this process as if it ran on a host."""

        def there() -> _T:
            with open(f"/run/netns/{self._namespace(host)}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        # A thread of its own: only the one that enters a namespace is in there.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(there).result()

    def add_address(self, host: str) -> str:
        """One more IP address of a host."""
        address = f"{_SUBNET}.{100 + self.hosts.index(host)}"
        _ip("-n", self._namespace(host), "address", "add", f"{address}/24", "dev", "eth0")
        return address

    def sent_bytes(self, host: str) -> int:
        """Bytes that have left a host so far, headers included."""
        path = "/sys/class/net/eth0/statistics/tx_bytes"
        words = [*self.inside(host), "cat", path]
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    @contextmanager
    def cut_off(self, host: str) -> Iterator[None]:
        """The host's cable is out."""
        _ip("-n", self._namespace(host), "link", "set", "eth0", "down")
        try:
            yield
        finally:
            _ip("-n", self._namespace(host), "link", "set", "eth0", "up")

    def _namespace(self, host: str) -> str:
        return f"{self._prefix}-{host}"

    def _make(self) -> None:
        switch = self._namespace(_SWITCH)
        _ip("netns", "add", switch)
        for host in (*self.hosts, *self._alone):
            _ip("netns", "add", self._namespace(host))
            _ip("-n", self._namespace(host), "link", "set", "lo", "up")
            for name, text in self._files.items():
                # `ip netns exec` lays what is here over /etc.
                (_FILES / self._namespace(host)).mkdir(parents=True, exist_ok=True)
                (_FILES / self._namespace(host) / name).write_text(text)
        if self._link is None:
            self._plug_in(switch)
        else:
            self._lay_wires(switch, self._link)
        for host in self.hosts:
            own = self._namespace(host)
            _ip("-n", own, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", own, "link", "set", "eth0", "up")

    def _plug_in(self, switch: str) -> None:
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, host in enumerate(self.hosts):
            port, veth = f"port{number}", ("type", "veth", "peer", "name", "eth0")
            _ip("-n", switch, "link", "add", port, *veth, "netns", self._namespace(host))
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")

    def _lay_wires(self, switch: str, link: Link) -> None:
        words = [f"{link.delay_ms}", f"{link.loss}", f"{link.seed}", *map(self.address, self.hosts)]
        self._wires = subprocess.Popen(
            [*self.inside(_SWITCH), sys.executable, "-m", "support.slow_link", *words],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self._wires.stdout is not None
        assert self._wires.stdout.readline() == "ready\n"
        for number, host in enumerate(self.hosts):
            moved = ("netns", self._namespace(host), "name", "eth0")
            _ip("-n", switch, "link", "set", f"wire{number}", *moved)

    def _remove(self) -> None:
        if self._wires is not None:
            self._wires.kill()
            self._wires.communicate()
        for host in (*self.hosts, *self._alone, _SWITCH):
            _delete(self._namespace(host))


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _remove_left_over() -> None:
    for line in _ip("netns", "list").splitlines():
        found = re.match(rf"{_PREFIX}-(\d+)-", line)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            _delete(line.split()[0])


def _delete(namespace: str) -> None:
    """Removes a namespace, with what still runs in it."""
    inside = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    for process in inside.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)
    shutil.rmtree(_FILES / namespace, ignore_errors=True)
