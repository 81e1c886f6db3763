"""Secrets and where they come from.

A secret prints as `<secret 32 bytes>`, compares in constant time, cannot be pickled, and is
read only by naming it: `.reveal()`. Python cannot promise to erase memory; a secret dies
with the state that holds it.
"""

import hmac
import os
from typing import NoReturn, Protocol, TypeAlias

__all__ = ["OsRandomness", "Randomness", "Secret"]

_Bytes: TypeAlias = bytes  # inside the classes below, `bytes` is the method


class Randomness(Protocol):
    """Where random bytes come from: the operating system, or a counter in tests."""

    def bytes(self, size: int, /) -> _Bytes:
        """`size` uniform bytes, never given before."""


class OsRandomness:
    """The operating system's generator."""

    def bytes(self, size: int, /) -> _Bytes:
        """`size` bytes of `os.urandom`."""
        return os.urandom(size)


class Secret:
    """Bytes that must not be printed, logged or pickled."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        if type(data) is not bytes:
            raise TypeError("a secret is made of bytes")
        self._data = data

    def reveal(self) -> bytes:
        """The bytes; every call is a place to audit."""
        return self._data

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._data, other._data)

    def __hash__(self) -> int:
        raise TypeError("a secret is no key of a dict: its hash would tell it")

    def __repr__(self) -> str:
        return f"<secret {len(self._data)} bytes>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")
