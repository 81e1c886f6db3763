"""What the server holds while it adds masked blocks does not grow with the owners."""

import tracemalloc
from pathlib import Path

import numpy as np

from blindmerge.encoding import uniform
from blindmerge.secagg.messages import Limits
from blindmerge_client.protocol import OwnerJob
from blindmerge_server.spool import Spool
from blindmerge_server.states import Unmasking
from blindmerge_server.unmask import sum_statistic
from support.secure_sum import federation, manifest_for, statistic_of

ELEMENTS, BLOCK = 1 << 17, 1 << 13


def peak_of_a_sum(owners: int, folder: Path) -> int:
    """Bytes that were held at once, the sum itself included."""
    everybody = federation(owners)
    layout = uniform({"x": (ELEMENTS,)}, 8, owners=owners, bits=64, block_elements=BLOCK)
    manifest = manifest_for(everybody.roster, parts=[layout])
    limits = Limits.of(manifest)
    everybody.jobs = [OwnerJob(j.job, j.identity, j.terms, limits) for j in everybody.jobs]
    everybody.statistics = [statistic_of(seat, layout.shapes) for seat in range(owners)]
    state, memory = everybody.advance(manifest, "R4")
    opened = everybody.round(state, memory, "R4").close()
    assert isinstance(opened, Unmasking)
    spool = Spool(folder, manifest)
    for seat in opened.transcript.sets.u3:
        for block in range(layout.blocks):
            spool.write(seat, block, memory.read(seat, block, opened.digests[seat][block]))
    del memory, state
    tracemalloc.start()
    total = sum_statistic(opened, spool, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.isfinite(total["x"]).all()
    return peak


def test_memory_of_a_sum_does_not_grow_with_its_owners(tmp_path: Path) -> None:
    few, many = (peak_of_a_sum(owners, tmp_path / str(owners)) for owners in (3, 15))
    # The sum of all blocks, and of one block the parts that are at work.
    assert few >= 8 * ELEMENTS
    assert many <= 8 * ELEMENTS + 8 * 8 * BLOCK
    assert many <= 1.2 * few
