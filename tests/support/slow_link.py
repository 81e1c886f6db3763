"""A wire far too long: every IP packet between hosts is late, and some are lost.

    python -m support.slow_link DELAY_MS LOSS SEED ADDRESS...

Makes one TUN device per address, `wire0` and so on, says "ready", and carries packets between
them until it is ended. Whoever started it moves the devices into the namespaces of the hosts.
It does what `tc netem delay ... loss ...` does, on kernels that come without netem.
"""

import fcntl
import heapq
import os
import random
import selectors
import socket
import struct
import sys
import time

__all__ = ["carry"]

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_PACKET_BYTES = 1 << 16
_DESTINATION = slice(16, 20)  # of an IPv4 header


def carry(delay_s: float, loss: float, seed: int, wires: dict[bytes, int]) -> None:
    """Carries packets for ever.   wires: file descriptor of a TUN device by IPv4 address."""
    rng, late = random.Random(seed), list[tuple[float, int, bytes]]()  # noqa: S311
    with selectors.DefaultSelector() as selector:
        for wire in wires.values():
            selector.register(wire, selectors.EVENT_READ)
        while True:
            wait_s = None if not late else max(0.0, late[0][0] - time.monotonic())
            for key, _ in selector.select(wait_s):
                packet = os.read(key.fd, _PACKET_BYTES)
                target = wires.get(packet[_DESTINATION]) if packet[0] >> 4 == 4 else None
                if target is not None and rng.random() >= loss:
                    heapq.heappush(late, (time.monotonic() + delay_s, target, packet))
            while late and late[0][0] <= time.monotonic():
                _, target, packet = heapq.heappop(late)
                os.write(target, packet)


def _wire(name: str) -> int:
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN_NO_PI))
    return file


def main() -> None:
    """The command."""
    delay_ms, loss, seed, *addresses = sys.argv[1:]
    wires = {socket.inet_aton(each): _wire(f"wire{n}") for n, each in enumerate(addresses)}
    print("ready", flush=True)
    carry(float(delay_ms) / 1000, float(loss), int(seed), wires)


if __name__ == "__main__":
    main()
