"""Key agreement, key derivation and sealing (SPEC §3).

One label per use: a key that seals shares never masks numbers. Every derivation has the hash
H of the manifest as its salt, so owners that were told different things derive different
keys: their masks do not cancel and their shares do not open.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blindmerge import canonical
from blindmerge.errors import ProtocolBroken, ShareInvalid
from blindmerge.secagg.secret import Randomness, Secret

__all__ = [
    "KEY_BYTES",
    "LABEL_GRAPH",
    "LABEL_SHARE",
    "TAG_BYTES",
    "ExchangeKey",
    "block_key",
    "check_public",
    "derive",
    "pair_key",
    "seal",
    "unseal",
]

KEY_BYTES = 32
_FIELD = 2**255 - 19
TAG_BYTES = 16

LABEL_SHARE = "blindmerge/1 share"  # seals the shares of one owner to one other
LABEL_PAIR_MASK = "blindmerge/1 mask"  # what two owners mask with, all blocks of a run
LABEL_BLOCK = "blindmerge/1 block"  # masks one block, from a pair's secret or a seed b
LABEL_GRAPH = "blindmerge/1 graph"  # draws who holds an owner's shares

# Every sealing key is used once, so the nonce may be constant.
_NONCE = bytes(12)


class ExchangeKey:
    """An X25519 key pair (RFC 7748) for one run."""

    __slots__ = ("_key", "public")

    def __init__(self, secret: Secret) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret.reveal())
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, rng: Randomness) -> "ExchangeKey":
        """A fresh key pair."""
        return cls(Secret(rng.bytes(KEY_BYTES)))

    @property
    def secret(self) -> Secret:
        """The 32 bytes that make the key pair again."""
        return Secret(self._key.private_bytes_raw())

    def agree(self, peer_public: bytes) -> Secret:
        """The secret that the peer's key agrees on too.

        Raises ProtocolBroken for a point of low order, whose secret everybody knows.
        """
        try:
            return Secret(self._key.exchange(X25519PublicKey.from_public_bytes(peer_public)))
        except ValueError as error:
            raise ProtocolBroken("a key of low order") from error

    def __repr__(self) -> str:
        return "<secret X25519 key>"


def check_public(public: bytes) -> None:
    """Raises ProtocolBroken unless 32 bytes are the one encoding of a point of high order."""
    if int.from_bytes(public, "little") >= _FIELD:
        raise ProtocolBroken("a key that is not in its shortest form")
    _PROBE.agree(public)


# Any private key will do: all are multiples of eight.
_PROBE = ExchangeKey(Secret(bytes(KEY_BYTES)))


def derive(secret: Secret, label: str, manifest_hash: bytes, *context: canonical.Value) -> Secret:
    """HKDF-SHA256 (RFC 5869) with H as salt and the canonical [label, *context] as info."""
    info = canonical.encode([label, *context])
    hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=manifest_hash, info=info)
    return Secret(hkdf.derive(secret.reveal()))


def seal(key: Secret, plaintext: Secret) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439); the key must be used for this message only."""
    return ChaCha20Poly1305(key.reveal()).encrypt(_NONCE, plaintext.reveal(), None)


def unseal(key: Secret, ciphertext: bytes) -> Secret:
    """What was sealed.   Raises ShareInvalid if it was not sealed with this key."""
    try:
        return Secret(ChaCha20Poly1305(key.reveal()).decrypt(_NONCE, ciphertext, None))
    except InvalidTag as error:
        raise ShareInvalid("a sealed message does not open") from error


def pair_key(
    own: ExchangeKey, peer_public: bytes, manifest_hash: bytes, seat: int, peer: int
) -> Secret:
    """The secret from which two owners derive the masks between them."""
    low, high = min(seat, peer), max(seat, peer)
    return derive(own.agree(peer_public), LABEL_PAIR_MASK, manifest_hash, low, high)


def block_key(secret: Secret, manifest_hash: bytes, block: int) -> Secret:
    """The key that masks one block, from a pair's secret or a self-mask seed."""
    return derive(secret, LABEL_BLOCK, manifest_hash, block)
