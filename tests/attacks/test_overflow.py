"""Attack, or accident: a number that would wrap around in the ring, and so be wrong or clipped."""

import numpy as np
import pytest

from blindmerge.encoding import Bits
from blindmerge.errors import Overflow
from blindmerge.statistic import Statistic
from support.adversary import revealed_sums
from support.secure_sum import SCHEMA, check_sum, federation, manifest_for, three_parts


@pytest.mark.parametrize("bits", [32, 48, 64])
@pytest.mark.parametrize("large", [513.0, -1e6, 1e300])
def test_a_number_beyond_the_public_bound_is_refused_and_its_owner_drops_out(
    bits: Bits, large: float
) -> None:
    # The bound is 2^8 and the next power of two is too much for five owners.
    owners = federation(5)
    arrays = {"weight": np.array([1.0]), "a:delta": np.full((2, 3), large)}
    owners.statistics[3] = Statistic(SCHEMA, arrays)
    manifest = manifest_for(owners.roster, bits=bits)
    check_sum(owners.run(manifest), owners, (0, 1, 2, 4))
    (problem,) = owners.errors
    assert problem[0] == "org-003"
    assert isinstance(problem[1], Overflow)
    # Not even the first block, which would have fitted, left the machine.
    assert not [m for seat, m in owners.sent if seat == 3 and m.kind == "block"]
    assert revealed_sums(owners, manifest) == [[0, 1, 2, 4]]


def test_an_overflow_in_a_later_part_drops_its_owner_out_of_all_parts() -> None:
    owners = federation(5)
    arrays = {"weight": np.array([1.0]), "a:delta": np.full((2, 3), 513.0)}
    owners.statistics[3] = Statistic(SCHEMA, arrays)
    owners.parts = (1, 0, 2)
    manifest = manifest_for(owners.roster, parts=three_parts(5))
    check_sum(owners.run(manifest), owners, (0, 1, 2, 4))
    (problem,) = owners.errors
    assert problem[0] == "org-003"
    assert isinstance(problem[1], Overflow)
    assert revealed_sums(owners, manifest) == [[0, 1, 2, 4]]
