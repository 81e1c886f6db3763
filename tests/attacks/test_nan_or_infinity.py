"""Attack, or accident: NaN or infinity in an owner's numbers, which would spoil the sum."""

import numpy as np
import pytest

from blindmerge.errors import NotFinite
from blindmerge.statistic import Statistic
from support.secure_sum import SCHEMA, check_sum, federation, manifest_for


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_never_leave_the_owner(bad: float) -> None:
    owners = federation(5)
    with pytest.raises(NotFinite):
        Statistic(SCHEMA, {"weight": np.array([bad]), "a:delta": np.zeros((2, 3))})
    # Nor when they slip in after the statistic was made.
    owners.statistics[3].arrays["a:delta"][1, 2] = bad
    check_sum(owners.run(manifest_for(owners.roster)), owners, (0, 1, 2, 4))
    (problem,) = owners.errors
    assert problem[0] == "org-003"
    assert isinstance(problem[1], NotFinite)
    assert not [m for seat, m in owners.sent if seat == 3 and m.kind == "block"]
