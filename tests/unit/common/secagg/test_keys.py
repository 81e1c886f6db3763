"""The primitives against published vectors and a second implementation."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blindmerge import canonical
from blindmerge.errors import ProtocolBroken, ShareInvalid
from blindmerge.identity import Identity, Member, verify
from blindmerge.secagg.keys import ExchangeKey, derive, seal, unseal
from blindmerge.secagg.secret import Secret
from support.randomness import CounterRandomness
from support.second_crypto import hkdf_sha256, x25519

VECTORS = json.loads(
    (Path(__file__).parents[3] / "vectors" / "published_crypto.json").read_text("utf-8")
)


def _vectors(name: str) -> list[dict[str, bytes]]:
    entries: list[dict[str, Any]] = VECTORS[name]["vectors"]
    return [{key: bytes.fromhex(text) for key, text in entry.items()} for entry in entries]


@pytest.mark.parametrize("vector", _vectors("x25519"))
def test_x25519_is_rfc_7748(vector: dict[str, bytes]) -> None:
    key = ExchangeKey(Secret(vector["scalar"]))
    assert key.agree(vector["point"]).reveal() == vector["shared"]
    assert x25519(vector["scalar"], vector["point"]) == vector["shared"]


@pytest.mark.parametrize("point", VECTORS["x25519"]["low_order_points"])
def test_points_of_low_order_are_refused(point: str) -> None:
    key = ExchangeKey.generate(CounterRandomness(0))
    with pytest.raises(ProtocolBroken, match="low order"):
        key.agree(bytes.fromhex(point))


def test_x25519_equals_the_second_implementation() -> None:
    rng = CounterRandomness(1)
    left, right = ExchangeKey.generate(rng), ExchangeKey.generate(rng)
    base = (9).to_bytes(32, "little")
    assert left.public == x25519(left.secret.reveal(), base)
    shared = x25519(left.secret.reveal(), right.public)
    assert left.agree(right.public).reveal() == right.agree(left.public).reveal() == shared


@pytest.mark.parametrize("vector", _vectors("hkdf_sha256"))
def test_hkdf_is_rfc_5869(vector: dict[str, bytes]) -> None:
    size = len(vector["okm"])
    hkdf = HKDF(algorithm=SHA256(), length=size, salt=vector["salt"], info=vector["info"])
    assert hkdf.derive(vector["ikm"]) == vector["okm"]
    assert hkdf_sha256(vector["ikm"], vector["salt"], vector["info"], size) == vector["okm"]


def test_derive_is_hkdf_of_label_and_context() -> None:
    key = derive(Secret(b"s" * 32), "label", b"h" * 32, 3, b"x")
    info = canonical.encode(["label", 3, b"x"])
    assert key.reveal() == hkdf_sha256(b"s" * 32, b"h" * 32, info, 32)


def test_every_part_of_a_derivation_matters() -> None:
    keys = [
        derive(Secret(b"s" * 32), "label", b"h" * 32, 1, 2),
        derive(Secret(b"t" * 32), "label", b"h" * 32, 1, 2),
        derive(Secret(b"s" * 32), "other", b"h" * 32, 1, 2),
        derive(Secret(b"s" * 32), "label", b"i" * 32, 1, 2),
        derive(Secret(b"s" * 32), "label", b"h" * 32, 2, 1),
        derive(Secret(b"s" * 32), "label", b"h" * 32, 12),
    ]
    assert len({key.reveal() for key in keys}) == len(keys)


@pytest.mark.parametrize("vector", _vectors("chacha20_poly1305"))
def test_chacha20_poly1305_is_rfc_8439(vector: dict[str, bytes]) -> None:
    cipher = ChaCha20Poly1305(vector["key"])
    sealed = cipher.encrypt(vector["nonce"], vector["plaintext"], vector["aad"])
    assert sealed == vector["ciphertext"]


def test_sealing_equals_a_second_library() -> None:
    aead = pytest.importorskip("Crypto.Cipher.ChaCha20_Poly1305", reason="needs pycryptodome")
    cipher = aead.new(key=b"k" * 32, nonce=bytes(12))
    ciphertext, tag = cipher.encrypt_and_digest(b"shares")
    assert seal(Secret(b"k" * 32), Secret(b"shares")) == ciphertext + tag
    assert unseal(Secret(b"k" * 32), ciphertext + tag).reveal() == b"shares"


def test_what_was_changed_or_sealed_to_another_does_not_open() -> None:
    sealed = seal(Secret(b"k" * 32), Secret(b"shares"))
    for key, data in (
        (b"l" * 32, sealed),
        (b"k" * 32, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (b"k" * 32, b""),
    ):
        with pytest.raises(ShareInvalid, match="open"):
            unseal(Secret(key), data)


@pytest.mark.parametrize("vector", _vectors("aes_256_ctr"))
def test_aes_256_ctr_is_sp_800_38a(vector: dict[str, bytes]) -> None:
    cipher = Cipher(algorithms.AES256(vector["key"]), modes.CTR(vector["counter"])).encryptor()
    assert cipher.update(vector["plaintext"]) == vector["ciphertext"]


@pytest.mark.parametrize("vector", _vectors("ed25519"))
def test_ed25519_is_rfc_8032(vector: dict[str, bytes]) -> None:
    identity = Identity("hospital", Secret(vector["seed"]))
    assert identity.public == vector["public"]
    assert identity.sign(vector["message"]) == vector["signature"]
    verify(Member("hospital", vector["public"]), vector["message"], vector["signature"])


def test_private_keys_do_not_show() -> None:
    identity = Identity.generate("hospital", CounterRandomness(3))
    assert repr(identity) == "<identity hospital>"
    assert Identity("hospital", identity.seed).public == identity.public
    assert repr(ExchangeKey.generate(CounterRandomness(3))) == "<secret X25519 key>"
