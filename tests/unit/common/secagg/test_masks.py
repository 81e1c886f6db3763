"""Masks are the published keystreams, cancel in pairs, and do not depend on threads."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge.encoding import Ring, from_ring, from_wire, to_wire
from blindmerge.secagg.masks import CHUNK_ELEMENTS, Prg, apply_masks
from blindmerge.secagg.secret import Secret
from support.second_crypto import chacha20_stream

VECTORS = json.loads(
    (Path(__file__).parents[3] / "vectors" / "published_crypto.json").read_text("utf-8")
)
KEYS = [Secret(bytes([index]) * 32) for index in range(4)]


def _mask(key: Secret, size: int, prg: Prg, threads: int = 1) -> Ring:
    ring = np.zeros(size, dtype=np.uint64)
    apply_masks(ring, [key], [], prg, threads=threads)
    return ring


@pytest.mark.parametrize(
    ("prg", "name"), [("aes-256-ctr", "aes_256_keystream"), ("chacha20", "chacha20_keystream")]
)
def test_masks_are_the_published_keystreams(prg: Prg, name: str) -> None:
    for vector in VECTORS[name]["vectors"]:
        stream = bytes.fromhex(vector["stream"])
        mask = _mask(Secret(bytes.fromhex(vector["key"])), len(stream) // 8, prg)
        assert mask.tobytes() == stream


def test_chacha20_equals_the_second_implementation_past_a_chunk() -> None:
    size = CHUNK_ELEMENTS + 20
    tail = chacha20_stream(KEYS[1].reveal(), 8 * size)[-160:]
    assert _mask(KEYS[1], size, "chacha20")[-20:].tobytes() == tail
    assert _mask(KEYS[1], size, "chacha20", threads=2)[-20:].tobytes() == tail


def test_aes_equals_a_second_library_past_a_chunk() -> None:
    aes = pytest.importorskip("Crypto.Cipher.AES", reason="needs pycryptodome")
    size = 2 * CHUNK_ELEMENTS + 3
    cipher = aes.new(KEYS[1].reveal(), aes.MODE_CTR, nonce=b"", initial_value=0)
    stream = cipher.encrypt(bytes(8 * size))
    for threads in (1, 2, 3):
        assert _mask(KEYS[1], size, "aes-256-ctr", threads).tobytes() == stream


@pytest.mark.parametrize("prg", ["aes-256-ctr", "chacha20"])
@given(size=st.sampled_from((0, 1, 7, CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS + 5)))
@settings(deadline=None, max_examples=10)
def test_what_is_added_and_subtracted_cancels(prg: Prg, size: int) -> None:
    ring = np.arange(size, dtype=np.uint64)
    apply_masks(ring, KEYS[:3], [], prg, threads=2)
    apply_masks(ring, [KEYS[3]], KEYS, prg)
    assert (ring == np.arange(size, dtype=np.uint64)).all()


def test_masks_of_the_small_ring_cancel_after_packing() -> None:
    # Two owners; the sum of what they send is the sum of what they have, modulo 2^48.
    values = [np.array([5, 2**48 - 7], dtype=np.uint64), np.array([1, 3], dtype=np.uint64)]
    apply_masks(values[0], [KEYS[1]], [], "aes-256-ctr")
    apply_masks(values[1], [], [KEYS[1]], "aes-256-ctr")
    total = sum((from_wire(to_wire(v, 48), 2, 48) for v in values), np.zeros(2, np.uint64))
    assert from_ring(total, 1.0, 48).tolist() == [6.0, -4.0]
