"""Masks are the published keystreams, cancel in pairs, and do not depend on threads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.encoding import Bits, Ring, from_ring, from_wire, to_wire
from blindmerge.secagg.masks import CHUNK_ELEMENTS, Prg, apply_masks
from blindmerge.secagg.secret import Secret
from support.second_crypto import chacha20_stream

VECTORS = json.loads(
    (Path(__file__).parents[3] / "vectors" / "published_crypto.json").read_text("utf-8")
)
KEYS = [Secret(bytes([index]) * 32) for index in range(4)]


def _mask(
    key: Secret, size: int, prg: Prg, threads: int = 1, dtype: type[np.unsignedinteger] = np.uint64
) -> Ring:
    ring = np.zeros(size, dtype=dtype)
    apply_masks(ring, [key], [], prg, threads=threads)
    return ring


@pytest.mark.parametrize(
    ("prg", "name"), [("aes-256-ctr", "aes_256_keystream"), ("chacha20", "chacha20_keystream")]
)
def test_masks_are_the_published_keystreams(prg: Prg, name: str) -> None:
    for vector in VECTORS[name]["vectors"]:
        stream, key = bytes.fromhex(vector["stream"]), Secret(bytes.fromhex(vector["key"]))
        assert _mask(key, len(stream) // 8, prg).tobytes() == stream
        assert _mask(key, len(stream) // 4, prg, dtype=np.uint32).tobytes() == stream


def test_chacha20_equals_the_second_implementation_past_a_chunk() -> None:
    size = CHUNK_ELEMENTS + 20
    stream = chacha20_stream(KEYS[1].reveal(), 8 * size)
    for threads in (1, 2):
        assert _mask(KEYS[1], size, "chacha20", threads).tobytes() == stream
        narrow = _mask(KEYS[1], size, "chacha20", threads, np.uint32)
        assert narrow.tobytes() == stream[: 4 * size]


def test_aes_equals_a_second_library_past_a_chunk() -> None:
    aes = pytest.importorskip("Crypto.Cipher.AES", reason="needs pycryptodome")
    size = 2 * CHUNK_ELEMENTS + 3
    cipher = aes.new(KEYS[1].reveal(), aes.MODE_CTR, nonce=b"", initial_value=0)
    stream = cipher.encrypt(bytes(8 * size))
    for threads in (1, 2, 3):
        assert _mask(KEYS[1], size, "aes-256-ctr", threads).tobytes() == stream
        narrow = _mask(KEYS[1], size, "aes-256-ctr", threads, np.uint32)
        assert narrow.tobytes() == stream[: 4 * size]


@pytest.mark.parametrize("prg", ["aes-256-ctr", "chacha20"])
@given(
    size=st.sampled_from((0, 1, 7, CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS + 5)),
    dtype=st.sampled_from((np.uint32, np.uint64)),
)
@settings(deadline=None, max_examples=20)
def test_what_is_added_and_subtracted_cancels(prg: Prg, size: int, dtype: Any) -> None:
    ring = np.arange(size, dtype=dtype)
    apply_masks(ring, KEYS[:3], [], prg, threads=2)
    apply_masks(ring, [KEYS[3]], KEYS, prg)
    assert (ring == np.arange(size, dtype=dtype)).all()


@pytest.mark.parametrize(("bits", "dtype"), [(32, np.uint32), (48, np.uint64)])
def test_masks_of_the_small_rings_cancel_after_packing(bits: Bits, dtype: Any) -> None:
    # Two owners; the sum of what they send is the sum of what they have, modulo 2^bits.
    values = [np.array([5, 2**bits - 7], dtype=dtype), np.array([1, 3], dtype=dtype)]
    apply_masks(values[0], [KEYS[1]], [], "aes-256-ctr")
    apply_masks(values[1], [], [KEYS[1]], "aes-256-ctr")
    total = np.zeros(2, dtype)
    for value in values:
        total += from_wire(to_wire(value, bits), 2, bits)
    assert from_ring(total, 1.0, bits).tolist() == [6.0, -4.0]
