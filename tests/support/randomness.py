"""Randomness of tests: AES-free, seeded, the same on every machine."""

import hashlib
from typing import TypeAlias

__all__ = ["CounterRandomness"]

_Bytes: TypeAlias = bytes


class CounterRandomness:
    """SHAKE-256 of (seed, counter): looks uniform, repeats itself run for run."""

    def __init__(self, seed: str | int) -> None:
        self._seed = str(seed).encode()
        self._calls = 0

    def bytes(self, size: int, /) -> _Bytes:
        """The next `size` bytes."""
        self._calls += 1
        return hashlib.shake_256(self._seed + b"|%d" % self._calls).digest(size)
