"""From masked blocks to the sum (SPEC §6, step R4.6), one block per thread in memory."""

from concurrent.futures import ThreadPoolExecutor

from blindmerge.encoding import Ring, from_wire
from blindmerge.secagg.keys import ExchangeKey, block_key, pair_key
from blindmerge.secagg.masks import apply_masks
from blindmerge.secagg.secret import Secret
from blindmerge.statistic import Statistic
from blindmerge_server.spool import Blocks
from blindmerge_server.states import Unmasking

__all__ = ["Unmasker", "sum_statistic"]


class Unmasker:
    """Takes the masks off the sums of blocks of one run."""

    def __init__(self, state: Unmasking) -> None:
        manifest, sets = state.transcript.manifest, state.transcript.sets
        matrix = state.adverts.holders(manifest)
        self._manifest = manifest
        self._minus = [state.seeds[seat] for seat in sets.u3]
        self._plus: list[Secret] = []
        for lost in sorted(state.masking):
            key = ExchangeKey(state.masking[lost])
            for seat in sets.u3:
                if matrix[seat, lost] or matrix[lost, seat]:
                    public = state.adverts[seat].masking
                    shared = pair_key(key, public, manifest.hash, seat, lost)
                    # The survivor added it if the lost owner's seat is the higher one.
                    (self._minus if lost > seat else self._plus).append(shared)

    def unmask(self, block: int, ring: Ring) -> None:
        """Takes the masks off the sum of all survivors' blocks `block`, in place."""
        plus, minus = (
            [block_key(key, self._manifest.hash, block) for key in keys]
            for keys in (self._plus, self._minus)
        )
        apply_masks(ring, plus, minus, self._manifest.prg)


def sum_statistic(state: Unmasking, blocks: Blocks, part: int, *, threads: int = 1) -> Statistic:
    """The sum of the survivors' statistics of one part.   threads: each takes whole blocks.

    Raises ResourceMissing if a block was lost or damaged.
    """
    manifest, sets = state.transcript.manifest, state.transcript.sets
    layout, unmasker = manifest.parts[part], Unmasker(state)
    first, arrays = manifest.blocks_of(part).start, layout.empty()

    def open_block(block: int) -> None:
        size = layout.block_size(block - first)
        total = layout.zeros(block - first)
        for seat in sets.u3:
            payload = blocks.read(seat, block, state.digests[seat][block])
            total += from_wire(payload, size, layout.bits)
        unmasker.unmask(block, total)
        layout.decode(total, block - first, arrays)

    with ThreadPoolExecutor(threads) as pool:
        for opened in [pool.submit(open_block, block) for block in manifest.blocks_of(part)]:
            opened.result()
    return Statistic(layout.shapes, arrays)
