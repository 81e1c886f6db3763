"""Why the masks are our own: the attack of `test_same_peer_active_and_dropped` succeeds
against flwr's SecAgg+, and shorter ones too. Run as long as flwr ships it, so that nobody
swaps it in.

The owners here are flwr's client functions, unchanged; only the server is hostile.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

mod = pytest.importorskip(
    "flwr.client.mod.secure_aggregation.secaggplus_mod", reason="flwr ships no SecAgg+"
)
plus = pytest.importorskip("flwr.common.secure_aggregation.secaggplus_utils")
shamir = pytest.importorskip("flwr.common.secure_aggregation.crypto.shamir")
sealing = pytest.importorskip("flwr.common.secure_aggregation.crypto.symmetric_encryption")
keys = pytest.importorskip("flwr.supercore.primitives.asymmetric")
flwr_common = pytest.importorskip("flwr.common")

CLIPPING, STEPS, MODULUS = 8.0, 1 << 22, 1 << 32
VICTIM, NODES = 12, (11, 12, 13)
EXAMPLES = 1000  # the weight that stands for 1


def _setup(node: int, **changes: object) -> Any:
    state = mod.SecAggPlusState()
    state.nid = node
    settings = {
        "sample_num": 3,
        "share_num": 3,
        "threshold": 2,
        "clipping_range": CLIPPING,
        "target_range": STEPS,
        "mod_range": MODULUS,
        "max_weight": float(EXAMPLES),
    }
    public = mod._setup(state, settings | changes)
    return state, (public["pk1"], public["pk2"])


def _upload(state: Any, vector: NDArray[np.float32], delivered: dict[int, bytes]) -> Any:
    answer = mod._collect_masked_vectors(
        state,
        {"srcs": list(delivered), "ctxts": list(delivered.values())},
        EXAMPLES,
        flwr_common.ndarrays_to_parameters([vector]),
    )
    return [flwr_common.bytes_to_ndarray(data) for data in answer["masked_params"]]


def _dealt(states: dict[int, Any], publics: dict[int, Any]) -> dict[int, dict[int, bytes]]:
    """What each node gets, by sender."""
    delivered: dict[int, dict[int, bytes]] = {node: {} for node in states}
    for node, state in states.items():
        answer = mod._share_keys(state, {str(n): list(pair) for n, pair in publics.items()})
        for to, sealed in zip(answer["dsts"], answer["ctxts"], strict=True):
            delivered[to][node] = sealed
    return delivered


def _opened(masked: Any, seed: bytes | None, shared: dict[int, bytes]) -> NDArray[np.float64]:
    """The victim's vector, once its own mask and those with its neighbours are known."""
    total = [np.asarray(part) for part in masked]
    shapes = [part.shape for part in total]
    streams = [] if seed is None else [(seed, -1)]
    streams += [(secret, -1 if node < VICTIM else 1) for node, secret in shared.items()]
    for secret, sign in streams:
        masks = plus.pseudo_rand_gen(secret, MODULUS, shapes)
        total = [part + sign * mask for part, mask in zip(total, masks, strict=True)]
    weight, numbers = (part % MODULUS for part in total)
    assert weight == STEPS  # one owner alone
    return np.asarray(numbers * (2 * CLIPPING / STEPS) - CLIPPING)


def test_asking_for_both_secrets_of_one_owner_gives_its_numbers() -> None:
    vector = np.linspace(-3, 3, 8, dtype=np.float32)
    pairs = {node: _setup(node) for node in NODES}
    states = {node: pair[0] for node, pair in pairs.items()}
    publics = {node: pair[1] for node, pair in pairs.items()}
    delivered = _dealt(states, publics)
    masked = {
        node: _upload(states[node], vector if node == VICTIM else 0 * vector, delivered[node])
        for node in NODES
    }
    # The two others are asked for the shares of the victim as active *and* as dead.
    shares: tuple[list[bytes], list[bytes]] = ([], [])
    for node in (11, 13):
        answer = mod._unmask(states[node], {"active_nids": [VICTIM, node], "dead_nids": [VICTIM]})
        both = [s for n, s in zip(answer["nids"], answer["shares"], strict=True) if n == VICTIM]
        for kind, share in zip(shares, both, strict=True):
            kind.append(share)
    seed, private = (shamir.combine_shares(kind) for kind in shares)
    own = keys.bytes_to_private_key(private)
    shared = {
        node: sealing.generate_shared_key(own, keys.bytes_to_public_key(publics[node][0]))
        for node in (11, 13)
    }
    # Stochastic rounding is off by less than one step.
    np.testing.assert_allclose(
        _opened(masked[VICTIM], seed, shared), vector, rtol=0, atol=2 * CLIPPING / STEPS
    )


def test_a_server_that_invents_the_neighbours_reads_the_vector() -> None:
    vector = np.linspace(-3, 3, 8, dtype=np.float32)
    state, public = _setup(VICTIM)
    invented = {node: _setup(node) for node in (11, 13)}
    publics = {VICTIM: public} | {node: pair[1] for node, pair in invented.items()}
    states = {VICTIM: state} | {node: pair[0] for node, pair in invented.items()}
    delivered = _dealt(states, publics)
    masked = _upload(state, vector, delivered[VICTIM])
    own_shares, shared = [], {}
    for node, (puppet, _) in invented.items():
        private = keys.bytes_to_private_key(puppet.sk1)
        shared[node] = sealing.generate_shared_key(private, keys.bytes_to_public_key(public[0]))
        secret = sealing.generate_shared_key(
            keys.bytes_to_private_key(puppet.sk2), keys.bytes_to_public_key(public[1])
        )
        plain = sealing.decrypt(secret, delivered[node][VICTIM])
        own_shares.append(plus.share_keys_plaintext_separate(plain)[2])
    seed = shamir.combine_shares(own_shares)
    np.testing.assert_allclose(
        _opened(masked, seed, shared), vector, rtol=0, atol=2 * CLIPPING / STEPS
    )


def test_masks_have_32_bits_of_seed() -> None:
    # The 32 bytes are folded to 32 bits: two different keys with the same fold, one mask.
    one = bytes(range(32))
    other = one[4:8] + one[:4] + one[8:]
    masks = [plus.pseudo_rand_gen(seed, MODULUS, [(4,)])[0] for seed in (one, other)]
    assert one != other
    assert (masks[0] == masks[1]).all()


def test_a_large_number_is_clipped_in_silence() -> None:
    quantization = pytest.importorskip("flwr.common.secure_aggregation.quantization")
    (quantized,) = quantization.quantize([np.array([1e6])], CLIPPING, STEPS)
    assert quantization.dequantize([quantized], CLIPPING, STEPS)[0].tolist() == [8.0]
