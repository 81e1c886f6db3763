"""Masks: keystreams added to numbers of the ring in place (SPEC §4, step R2).

A mask of a block is the keystream of AES-256 in counter mode (NIST SP 800-38A; the first
counter is zero) or of ChaCha20 (RFC 8439; counter and nonce zero), read as little-endian
numbers as wide as those of the ring in memory: uint32 for 32 bits, else uint64. Every key masks
one block only. Adding wraps modulo 2^32 or 2^64; for the 48-bit ring the upper 16 bits are
meaningless and never leave the machine.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from blindmerge.encoding import Ring
from blindmerge.secagg.secret import Secret

__all__ = ["CHUNK_ELEMENTS", "Prg", "apply_masks"]

Prg: TypeAlias = Literal["aes-256-ctr", "chacha20"]

CHUNK_ELEMENTS = 1 << 15
"""Numbers that are masked by all keys before the next are touched: they stay in the cache."""

_ZEROS = bytes(8 * CHUNK_ELEMENTS)


def apply_masks(
    ring: Ring, plus: Sequence[Secret], minus: Sequence[Secret], prg: Prg, *, threads: int = 1
) -> None:
    """Adds the masks of the keys `plus` to `ring` and subtracts those of `minus`, in place.

    ring: C-contiguous; a whole block.   threads: each takes a part of the block;
    OpenSSL and numpy run outside of the interpreter's lock.
    Extra memory: one chunk per thread, and one cipher per key and thread.
    """
    chunks = -(-len(ring) // CHUNK_ELEMENTS)
    parts = max(1, min(threads, chunks))
    bounds = [CHUNK_ELEMENTS * (chunks * part // parts) for part in range(parts)] + [len(ring)]
    if parts == 1:
        _mask_part(ring, 0, plus, minus, prg)
        return
    with ThreadPoolExecutor(parts) as pool:
        jobs = [
            pool.submit(_mask_part, ring[low:high], low, plus, minus, prg)
            for low, high in pairwise(bounds)
        ]
        for job in jobs:
            job.result()


def _mask_part(
    ring: Ring, first: int, plus: Sequence[Secret], minus: Sequence[Secret], prg: Prg
) -> None:
    size = ring.itemsize
    adding = [_keystream(key, size * first, prg) for key in plus]
    subtracting = [_keystream(key, size * first, prg) for key in minus]
    buffer = bytearray(size * min(CHUNK_ELEMENTS, len(ring)))
    stream = np.frombuffer(buffer, dtype=ring.dtype.newbyteorder("<"))
    for at in range(0, len(ring), CHUNK_ELEMENTS):
        chunk = ring[at : at + CHUNK_ELEMENTS]
        zeros = memoryview(_ZEROS)[: size * len(chunk)]
        for cipher in adding:
            cipher.update_into(zeros, buffer)
            np.add(chunk, stream[: len(chunk)], out=chunk)
        for cipher in subtracting:
            cipher.update_into(zeros, buffer)
            np.subtract(chunk, stream[: len(chunk)], out=chunk)


def _keystream(key: Secret, first: int, prg: Prg) -> CipherContext:
    """A cipher that goes on at byte `first`, where a chunk begins."""
    if prg == "aes-256-ctr":
        counter = (first // 16).to_bytes(16, "big")  # 16 bytes per counter
        return Cipher(algorithms.AES256(key.reveal()), modes.CTR(counter)).encryptor()
    counter = (first // 64).to_bytes(4, "little") + bytes(12)  # 64 bytes per counter
    return Cipher(algorithms.ChaCha20(key.reveal(), counter), mode=None).encryptor()
