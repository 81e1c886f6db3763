"""A second implementation of the primitives, written from the RFCs in plain integers.

Slow and not constant-time: it is here to disagree, not to be used.
"""

import hashlib
import hmac
import struct

__all__ = ["chacha20_stream", "hkdf_sha256", "x25519"]

_P = 2**255 - 19


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5: the Montgomery ladder."""
    k = int.from_bytes(scalar, "little")
    k = (k & ~7 & ((1 << 255) - 1)) | 1 << 254
    u = int.from_bytes(point, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for bit in reversed(range(255)):
        now = k >> bit & 1
        if swap ^ now:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = now
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % _P, b * b % _P, d * a % _P, c * b % _P
        e = aa - bb
        x3, z3 = pow(da + cb, 2, _P), u * pow(da - cb, 2, _P) % _P
        x2, z2 = aa * bb % _P, e * (aa + 121665 * e) % _P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(32, "little")


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869: extract, then expand."""
    extracted = hmac.digest(salt, secret, hashlib.sha256)
    block, out, counter = b"", b"", 1
    while len(out) < size:
        block = hmac.digest(extracted, block + info + bytes([counter]), hashlib.sha256)
        out += block
        counter += 1
    return out[:size]


def _rotated(word: int, by: int) -> int:
    return (word << by | word >> 32 - by) & 0xFFFFFFFF


def _quarter(s: list[int], a: int, b: int, c: int, d: int) -> None:
    for to, by, turn, rotation in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[to] = (s[to] + s[by]) & 0xFFFFFFFF
        s[turn] = _rotated(s[turn] ^ s[to], rotation)


def chacha20_stream(key: bytes, size: int) -> bytes:
    """RFC 8439, section 2.4: counter and nonce start at zero."""
    out = b""
    for counter in range(-(-size // 64)):
        state = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key)]
        state += [counter, 0, 0, 0]
        work = list(state)
        for _ in range(10):
            for column in range(4):
                _quarter(work, column, column + 4, column + 8, column + 12)
            for diagonal in range(4):
                _quarter(
                    work,
                    diagonal,
                    (diagonal + 1) % 4 + 4,
                    (diagonal + 2) % 4 + 8,
                    (diagonal + 3) % 4 + 12,
                )
        out += struct.pack(
            "<16I", *((w + s) & 0xFFFFFFFF for w, s in zip(work, state, strict=True))
        )
    return out[:size]
