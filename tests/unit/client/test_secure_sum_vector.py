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

from blindmerge.encoding import Bits
from blindmerge.secagg.adverts import Advert
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import Block, Deal, MyAdvert, Opening
from blindmerge_client.rounds import encode_part
from support.second_crypto import chacha20_stream, hkdf_sha256, x25519
from support.secure_sum import Federation, federation, manifest_for, three_parts

WHOLE = {64: "secure_sum_four_owners.json", 32: "secure_sum_four_owners_32_bits.json"}
VECTORS = Path(__file__).parents[2] / "vectors"
OWNERS = 4
PRIME = 2**256 + 297


def _run(bits: Bits) -> dict[str, Any]:
    """Four owners, of whom the last vanishes after it dealt its shares."""
    owners = federation(OWNERS)
    owners.gone = {3: "R2"}
    # Three parts of 2, 1 and 3 blocks.
    parts = three_parts(OWNERS, bits=bits)
    manifest = manifest_for(owners.roster, prg="chacha20", parts=parts, attempt=0)
    owners.run(manifest)
    return _recorded(owners, manifest)


def _recorded(owners: Federation, manifest: SumManifest) -> dict[str, Any]:
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
    width, bits = ("I", 32) if _bits(vector) == 32 else ("Q", 64)
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
        stream = chacha20_stream(key, bits // 8 * len(total))
        mask = struct.unpack(f"<{len(total)}{width}", stream)
        total = [(y + sign * m) % 2**bits for y, m in zip(total, mask, strict=True)]
    return struct.pack(f"<{len(total)}{width}", *total)


def _bits(vector: dict[str, Any]) -> int:
    (bits,) = {part["bits"] for part in cbor2.loads(bytes.fromhex(vector["manifest"]))["parts"]}
    return int(bits)


@pytest.mark.parametrize("bits", WHOLE)
def test_the_machines_still_say_what_they_said(bits: Bits) -> None:
    vector = _vector(WHOLE[bits])
    reason = vector.pop("reason")
    assert _bits(vector) == bits
    assert _run(bits) == vector
    assert "second implementation" in reason


@pytest.mark.parametrize("name", WHOLE.values())
def test_a_second_implementation_masks_alike(name: str) -> None:
    vector = _vector(name)
    assert hashlib.sha256(bytes.fromhex(vector["manifest"])).hexdigest() == vector["hash"]
    assert [block for seat, block, _ in vector["blocks"] if seat == 0] == list(range(6))
    for seat, block, payload in vector["blocks"]:
        assert _masked_block(vector, seat, block).hex() == payload


@pytest.mark.parametrize("bits", WHOLE)
def test_a_second_implementation_reads_the_numbers_and_adds_them(bits: Bits) -> None:
    """Inputs are round(value 2^e) modulo 2^w; their sum, signed, times 2^-e is the sum."""
    vector, owners = _vector(WHOLE[bits]), federation(OWNERS)
    parts = three_parts(OWNERS, bits=bits)
    manifest = manifest_for(owners.roster, prg="chacha20", parts=parts, attempt=0)
    # 2^8 is the bound; of four owners 2^e times that may be 2^(w - 4), 2^(w - 3) is too much.
    assert {e for part in parts for a in part.arrays for e in a.scale.exponents} == {bits - 12}
    first = 0
    for part, layout in enumerate(parts):
        blocks = range(first, first + layout.blocks)
        first += layout.blocks
        sums = []
        for columns in zip(
            *([x for b in blocks for x in vector["inputs"][seat][b]] for seat in range(3)),
            strict=True,
        ):
            total = sum(columns) % 2**bits
            sums.append((total - 2**bits if total >= 2 ** (bits - 1) else total) / 2 ** (bits - 12))
        inputs = [owners.input(seat, manifest, part) for seat in range(3)]
        flat = [np.concatenate([each[n].reshape(-1) for n in layout.shapes]) for each in inputs]
        step = 2.0 ** -(bits - 12)
        atol = 3 * step / 2 + 2.0**-50 * float(np.abs(flat).max())
        np.testing.assert_allclose(sums, np.sum(flat, axis=0), rtol=0, atol=atol)


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
