"""One whole run as a vector, recomputed by a second implementation from the keys alone.

The second one shares nothing with the first but the specification: cbor2 for canonical bytes,
X25519, HKDF and ChaCha20 in plain integers, hashlib, Lagrange over fractions.
"""

import hashlib
import json
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest

from blindmerge.secagg.adverts import Advert
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import Block, Deal, MyAdvert, Opening
from blindmerge_client.rounds import encode_part
from support.second_crypto import chacha20_stream, hkdf_sha256, x25519
from support.secure_sum import Federation, federation, manifest_for, three_parts

VECTORS = Path(__file__).parents[2] / "vectors"
OWNERS = 4
PRIME = 2**256 + 297


def _run(attempt: int) -> Federation:
    """Four owners, of whom the last vanishes after it dealt its shares."""
    owners = federation(OWNERS)
    owners.gone = {3: "R2"}
    owners.run(_manifest(owners, attempt))
    return owners


def _manifest(owners: Federation, attempt: int) -> SumManifest:
    """Three parts of 2, 1 and 3 blocks."""
    return manifest_for(owners.roster, prg="chacha20", parts=three_parts(OWNERS), attempt=attempt)


def _recorded(owners: Federation, attempt: int) -> dict[str, Any]:
    manifest = _manifest(owners, attempt)
    said: dict[str, Any] = {"adverts": [], "deals": [], "blocks": [], "openings": []}
    for seat, message in owners.sent:
        match message:
            case MyAdvert():
                said["adverts"].append(message.record.hex())
            case Deal():
                said["deals"].append([message.sealed.hex(), message.commitments.hex()])
            case Block():
                said["blocks"].append([seat, message.index, message.payload.hex()])
            case Opening():
                said["openings"].append([seat, message.shares.hex()])
    keys = [owners.masked[manifest.hash, seat] for seat in range(3)]
    return {
        "manifest": manifest.encoded.hex(),
        "hash": manifest.hash.hex(),
        "seeds": [state.seed.reveal().hex() for state in keys],
        "masking": [state.masking.reveal().hex() for state in keys],
        "inputs": [
            [
                ring.tolist()
                for part in range(3)
                for ring in encode_part(manifest, part, owners.input(seat, manifest, part))
            ]
            for seat in range(3)
        ],
        **said,
    }


def _vector(name: str) -> dict[str, Any]:
    vector: dict[str, Any] = json.loads((VECTORS / name).read_text("utf-8"))
    return vector


def _derived(secret: bytes, label: str, salt: bytes, *context: object) -> bytes:
    return hkdf_sha256(secret, salt, cbor2.dumps([label, *context], canonical=True), 32)


def _masked_block(vector: dict[str, Any], seat: int, block: int) -> bytes:
    """y of one owner and block from the keys of the vector."""
    salt = bytes.fromhex(vector["hash"])
    numbers = vector["inputs"][seat][block]
    streams = [(1, bytes.fromhex(vector["seeds"][seat]))]
    for peer in set(range(OWNERS)) - {seat}:
        public = bytes.fromhex(vector["adverts"][peer])[32:64]
        agreed = x25519(bytes.fromhex(vector["masking"][seat]), public)
        pair = _derived(agreed, "blindmerge/1 mask", salt, min(seat, peer), max(seat, peer))
        streams.append((1 if peer > seat else -1, pair))
    total = list(numbers)
    for sign, secret in streams:
        key = _derived(secret, "blindmerge/1 block", salt, block)
        stream = struct.unpack(f"<{len(total)}Q", chacha20_stream(key, 8 * len(total)))
        total = [(y + sign * m) % 2**64 for y, m in zip(total, stream, strict=True)]
    return struct.pack(f"<{len(total)}Q", *total)


def test_the_machines_still_say_what_they_said() -> None:
    vector = _vector("secure_sum_four_owners.json")
    reason = vector.pop("reason")
    assert _recorded(_run(attempt=0), attempt=0) == vector
    assert "second implementation" in reason


def test_a_second_implementation_masks_alike() -> None:
    vector = _vector("secure_sum_four_owners.json")
    assert hashlib.sha256(bytes.fromhex(vector["manifest"])).hexdigest() == vector["hash"]
    assert [block for seat, block, _ in vector["blocks"] if seat == 0] == list(range(6))
    for seat, block, payload in vector["blocks"]:
        assert _masked_block(vector, seat, block).hex() == payload


def test_a_second_implementation_finds_the_same_secrets_in_the_openings() -> None:
    vector = _vector("secure_sum_four_owners.json")
    for dealer in range(OWNERS):
        shares = {
            seat + 1: int(shares[66 * dealer : 66 * (dealer + 1)], 16)
            for seat, shares in vector["openings"]
        }
        total = Fraction(0)
        for point, share in shares.items():
            weight = Fraction(1)
            for other in shares.keys() - {point}:
                weight *= Fraction(other, other - point)
            total += share * weight
        secret = (total.numerator * pow(total.denominator, -1, PRIME) % PRIME).to_bytes(32, "big")
        advert = bytes.fromhex(vector["adverts"][dealer])
        if dealer < 3:  # survived: its b, to which its advert commits
            committed = ["blindmerge/1 seed", bytes.fromhex(vector["hash"]), dealer, secret]
            digest = hashlib.sha256(cbor2.dumps(committed, canonical=True)).digest()
            assert digest == advert[64:96]
            assert secret.hex() == vector["seeds"][dealer]
        else:  # vanished: its masking key
            assert x25519(secret, (9).to_bytes(32, "little")) == advert[32:64]


def test_the_failing_twin_has_the_same_keys_and_masks_that_do_not_fit() -> None:
    # The twin differs in the attempt, and so in H, only; its blocks were copied from the first.
    twin = _vector("secure_sum_four_owners_wrong_hash.json")
    assert "attempt" in twin["reason"]
    first = _vector("secure_sum_four_owners.json")
    assert twin["blocks"] == first["blocks"]
    assert twin["seeds"] == first["seeds"]
    assert twin["hash"] != first["hash"]
    for seat, block, payload in twin["blocks"]:
        assert _masked_block(twin, seat, block).hex() != payload
    # A server that unmasks with the other H gets noise, not the sum.
    sums = np.zeros(4, dtype=np.uint64)
    for seat in range(3):
        sums += np.frombuffer(_masked_block(first, seat, 0), dtype="<u8")
        sums -= np.frombuffer(_masked_block(twin, seat, 0), dtype="<u8")
    assert sums.any()


@pytest.mark.parametrize("seat", range(OWNERS))
def test_adverts_of_the_vector_are_signed_over_the_specified_bytes(seat: int) -> None:
    vector = _vector("secure_sum_four_owners.json")
    roster = federation(OWNERS).roster
    record = bytes.fromhex(vector["adverts"][seat])
    keys = [record[at : at + 32] for at in range(0, 128, 32)]
    signed = ["blindmerge/1 adv", bytes.fromhex(vector["hash"]), roster.name(seat), *keys]
    ed25519 = pytest.importorskip("Crypto.Signature.eddsa", reason="needs pycryptodome")
    key = ed25519.import_public_key(roster.members[seat].public)
    ed25519.new(key, "rfc8032").verify(cbor2.dumps(signed, canonical=True), record[128:])
    assert Advert.decode(record).signature == record[128:]
