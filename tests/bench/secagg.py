"""Speed and memory of the secure sum, as ratios measured in one run.

    PYTHONPATH=tests python tests/bench/secagg.py [--large | --quick] [--out DIR]

Everything runs in one thread. What is compared takes turns, five times, and the medians of
the five ratios count: a busy machine slows all of them. Peers: flwr's SecAgg+ (the mask of
one neighbour generated and added), and the bare keystream of AES-256-CTR, added. The machines
are the real ones; only what they hold (keys, sets) is made here without the rounds before.
"""

import argparse
import gc
import json
import os
import platform
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from bench.machine import processor
from bench.secagg_report import OURS, Growth, Rates, Results, draw, table
from blindmerge.encoding import Ring, uniform
from blindmerge.identity import Identity, Roster
from blindmerge.secagg.adverts import Advert, Adverts
from blindmerge.secagg.keys import ExchangeKey, block_key
from blindmerge.secagg.manifest import SumManifest, Thresholds
from blindmerge.secagg.masks import CHUNK_ELEMENTS, apply_masks
from blindmerge.secagg.secret import OsRandomness, Secret
from blindmerge.secagg.transcript import Sets, Transcript
from blindmerge.statistic import Statistic
from blindmerge_client.rounds import Masker, commit_part, encode_part
from blindmerge_client.states import Masked
from blindmerge_server.states import Unmasking
from blindmerge_server.unmask import Unmasker

REPEATS = 5
BLOCK_ELEMENTS = 1 << 18  # 2 MiB on the wire
NEIGHBOURS = 9  # of an owner of ten, where rates are measured; its own mask comes on top
RNG = OsRandomness()

RAW = "AES-256-CTR and add"
FLOWER = {"SecAgg+, 64 bits": 1 << 63, "SecAgg+, 32 bits": 1 << 32}  # its mod_range


@dataclass(frozen=True)
class Sizes:
    """elements, owners: of growth.   rates: elements with which peers are compared.

    The server takes masks off vectors of the first size only.
    """

    elements: tuple[int, ...]
    rates: tuple[int, ...]
    owners: tuple[int, ...]


USUAL = Sizes((10**6, 10**7), (10**6, 10**7), (5, 10, 20, 50, 100))
LARGE = Sizes((10**6, 10**7, 10**8), (10**6, 10**7), (5, 10, 20, 50, 100))
QUICK = Sizes((10**4, 10**5), (10**4, 10**5), (5, 10, 20))


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = perf_counter()
    work()
    return perf_counter() - start


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that `work` holds beyond what was there, without OpenSSL's contexts."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - before


# What is compared: all masks of one vector, added to it.


def mask_ours(ring: Ring, keys: Sequence[Secret]) -> None:
    """As owners and server do it, block by block, keys of blocks included."""
    for index, at in enumerate(range(0, len(ring), BLOCK_ELEMENTS)):
        plus = [block_key(key, bytes(32), index) for key in keys]
        apply_masks(ring[at : at + BLOCK_ELEMENTS], plus, [], "aes-256-ctr")


def mask_raw(ring: Ring, keys: Sequence[Secret]) -> None:
    """The shortest loop around the cipher that stays in the cache."""
    zeros, buffer = memoryview(bytes(8 * CHUNK_ELEMENTS)), bytearray(8 * CHUNK_ELEMENTS)
    stream = np.frombuffer(buffer, dtype="<u8")
    for key in keys:
        cipher = Cipher(algorithms.AES256(key.reveal()), modes.CTR(bytes(16))).encryptor()
        for at in range(0, len(ring), CHUNK_ELEMENTS):
            chunk = ring[at : at + CHUNK_ELEMENTS]
            cipher.update_into(zeros[: 8 * len(chunk)], buffer)
            np.add(chunk, stream[: len(chunk)], out=chunk)


def mask_flower(ring: Ring, keys: Sequence[Secret], mod_range: int) -> None:
    """As the client of SecAgg+ does it (`_collect_masked_vectors`)."""
    vectors = [ring.view(np.int64)]
    for key in keys:
        mask = pseudo_rand_gen(key.reveal(), mod_range, [ring.shape])
        vectors = parameters_addition(vectors, mask)


def contestants(elements: int) -> dict[str, Callable[[], None]]:
    """By name, the masking of a vector of so many elements by ten keys."""
    ring = np.zeros(elements, dtype=np.uint64)
    keys = [Secret(RNG.bytes(32)) for _ in range(NEIGHBOURS + 1)]

    def flower(mod_range: int) -> Callable[[], None]:
        return lambda: mask_flower(ring, keys, mod_range)

    return {
        OURS: lambda: mask_ours(ring, keys),
        RAW: lambda: mask_raw(ring, keys),
        **{name: flower(mod_range) for name, mod_range in FLOWER.items()},
    }


def check_same_work() -> None:
    """Ours and the bare keystream give the same sum: nobody skips anything."""
    ring, raw = np.zeros((2, 3 * CHUNK_ELEMENTS + 5), dtype=np.uint64)
    keys = [Secret(RNG.bytes(32)) for _ in range(3)]
    apply_masks(ring, keys, [], "aes-256-ctr")
    mask_raw(raw, keys)
    if not (ring == raw).all():
        raise SystemExit("the contestants do not compute the same")


def rates(elements: int) -> Rates:
    """All contestants, in turns."""
    work = contestants(elements)
    for each in work.values():
        each()  # pages and caches are warm
    runs = [{name: seconds(each) for name, each in work.items()} for _ in range(REPEATS)]
    masked = 8e-6 * elements * (NEIGHBOURS + 1)
    return Rates(
        elements,
        runs,
        {name: median(masked / run[name] for run in runs) for name in work},
        {name: median(run[name] / run[OURS] for run in runs) for name in work},
        {name: peak_bytes(each) for name, each in work.items()},
    )


# The real machines, in states without a history.


def situation(owners: int, elements: int, lost: int) -> tuple[Masked, Unmasking]:
    """An owner about to mask, and the server when all secrets of the run are opened.

    The last `lost` owners have dropped out after dealing. Shares, signatures and the owner's
    digests, which neither machine reads here, are left out.
    """
    identities = [Identity.generate(f"org-{seat:03d}", RNG) for seat in range(owners)]
    roster = Roster.of([identity.member for identity in identities])
    layout = uniform({"x": (elements,)}, 4, owners=owners, bits=64, block_elements=BLOCK_ELEMENTS)
    manifest = SumManifest(
        job="bench",
        phase=0,
        phases=1,
        attempt=0,
        roster=roster.sha256.hex(),
        plan="0" * 64,
        base="0" * 64,
        parts=(layout,),
        thresholds=Thresholds.for_owners(owners),
        expires=0,
    )
    masking = [ExchangeKey.generate(RNG) for _ in range(owners)]
    seeds = [Secret(RNG.bytes(32)) for _ in range(owners)]
    records = {
        seat: Advert(bytes(32), key.public, bytes(32), RNG.bytes(32), bytes(64)).encode()
        for seat, key in enumerate(masking)
    }
    adverts, everybody = Adverts.of(records), tuple(range(owners))
    here = everybody[: owners - lost]
    sets = Sets(adverts.digest(manifest.hash), everybody, everybody, here)
    seat = owners // 2
    owner = Masked(manifest, seat, masking[seat].secret, seeds[seat], adverts, everybody, {}, {})
    gone = {other: masking[other].secret for other in everybody[len(here) :]}
    server = Unmasking(
        Transcript(manifest, roster, sets, (), b""),
        adverts,
        {},
        {other: seeds[other] for other in here},
        gone,
        here,
    )
    return owner, server


def upload(state: Masked, statistic: Statistic) -> None:
    """All that an owner does for its masked input: encoding, keys, masks, bytes for the wire."""
    rings = encode_part(state.manifest, 0, statistic)
    for _ in Masker(commit_part(state, 0, rings)).blocks(0, rings):
        pass


def unmask(state: Unmasking) -> None:
    """All that the server does to take the masks off the sum."""
    (layout,), unmasker = state.transcript.manifest.parts, Unmasker(state)
    for index in range(layout.blocks):
        unmasker.unmask(index, np.zeros(layout.block_size(index), dtype=np.uint64))


def lost_of(owners: int) -> int:
    """A tenth drops out, at least one."""
    return max(1, owners // 10)


def prgs_of(owners: int) -> int:
    """Keystreams that the server needs: a seed per survivor, and its pairs with the lost."""
    lost = lost_of(owners)
    return (owners - lost) * (1 + lost)


def growth(owners: int, elements: int, *, at_server: bool) -> Growth:
    """Owner and server in turns; the server only if `at_server`, since it needs minutes."""
    lost = max(1, owners // 10)
    # A seed per survivor, and its pairs with the lost.
    keystreams = (owners - lost) * (1 + lost)
    owner, server = situation(owners, elements, lost)
    values = np.random.default_rng(0).uniform(-1.0, 1.0, elements)
    statistic = Statistic({"x": (elements,)}, {"x": values})
    peak = peak_bytes(lambda: upload(owner, statistic))
    runs = [
        (
            seconds(lambda: upload(owner, statistic)),
            seconds(lambda: unmask(server)) if at_server else None,
        )
        for _ in range(REPEATS)
    ]
    per_upload = [1e9 * run[0] / elements / owners for run in runs]
    per_unmask = [1e9 * run[1] / elements / keystreams for run in runs if run[1] is not None]
    ratios = [u / o for o, u in zip(per_upload, per_unmask, strict=False)]
    return Growth(
        owners,
        lost,
        elements,
        keystreams,
        runs,
        median(per_upload),
        median(per_unmask) if at_server else None,
        median(ratios) if at_server else None,
        peak,
    )


def machine() -> dict[str, object]:
    """Where it was measured."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads_used": 1,
        "python": platform.python_version(),
        "openssl": backend.openssl_version_text(),
        **{name: version(name) for name in ("numpy", "cryptography", "flwr")},
    }


def measure(sizes: Sizes) -> Results:
    """Everything; minutes."""
    check_same_work()
    found = [rates(elements) for elements in sizes.rates]
    grown = []
    for elements in sizes.elements:
        for owners in sizes.owners:
            print(f"{elements:,} numbers, {owners} owners", flush=True)
            grown.append(growth(owners, elements, at_server=elements == sizes.elements[0]))
    return Results(REPEATS, machine(), found, grown)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Speed and memory of the secure sum.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--large", action="store_const", const=LARGE, dest="sizes")
    sizes.add_argument("--quick", action="store_const", const=QUICK, dest="sizes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results = measure(options.sizes or USUAL)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "secagg.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    (options.out / "secagg.md").write_text(table(results) + "\n")
    draw(results).savefig(options.out / "secagg.png", dpi=150)
    print(table(results))


if __name__ == "__main__":
    main()
