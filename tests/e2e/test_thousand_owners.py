"""A secure sum over a thousand owners, a tenth of whom vanish at random rounds."""

import numpy as np

from blindmerge_server.states import Unmasking
from support.adversary import known_secrets, revealed_sums
from support.secure_sum import ROUNDS, check_sum, federation, manifest_for


def test_a_thousand_owners_with_a_hundred_drop_outs() -> None:
    owners = federation(1000)
    owners.restarts = False  # states are saved, with a receipt, but not read back
    manifest = manifest_for(owners.roster, block_elements=100)
    thresholds = manifest.thresholds
    assert (thresholds.holders, thresholds.threshold, thresholds.quorum) == (95, 66, 551)
    chance = np.random.default_rng(10)
    leaving = chance.choice(1000, 100, replace=False).tolist()
    owners.gone = {seat: ROUNDS[chance.integers(5)] for seat in leaving}
    outcome = owners.run(manifest)
    assert isinstance(outcome.state, Unmasking)
    before_upload = {seat for seat, step in owners.gone.items() if step in ("R0", "R1", "R2")}
    survivors = [seat for seat in range(1000) if seat not in before_upload]
    check_sum(outcome, owners, survivors)
    assert not owners.errors
    # All that anybody could compute from what was opened is that one sum.
    assert revealed_sums(owners, manifest) == [survivors]
    # Nor do a hundred colluders learn more than the sum over the honest ones.
    colluders = [seat for seat in survivors if seat % 9 == 0][:100]
    honest = [seat for seat in survivors if seat not in set(colluders)]
    assert revealed_sums(owners, manifest, colluders) == [honest]
    seeds, masking = known_secrets(owners, manifest, colluders)
    assert not (seeds & masking) - set(colluders)
