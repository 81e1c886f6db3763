"""Attack: a threshold so low that the server opens what it likes with a few friends."""

import pytest

from blindmerge import canonical
from blindmerge.errors import PeerInvalid, PolicyRefused
from blindmerge.secagg.manifest import Thresholds
from blindmerge.secagg.messages import Propose
from support.secure_sum import federation, manifest_for


@pytest.mark.parametrize("threshold", [0, 1, 2, 5])
def test_a_threshold_below_the_table_is_refused(threshold: int) -> None:
    owners = federation(10)
    value = canonical.decode(manifest_for(owners.roster).encoded)
    assert isinstance(value, dict)
    thresholds = value["thresholds"]
    assert isinstance(thresholds, dict)
    lower = thresholds | {"threshold": threshold, "dropouts": 10 - threshold}
    data = canonical.encode(value | {"thresholds": lower})
    assert owners.ask(0, Propose(bytes(32), data)) == []
    error = owners.errors.pop()[1]
    assert isinstance(error, PeerInvalid)
    assert "thresholds" in error.message


def test_fewer_tolerated_colluders_than_the_owner_demands_are_refused() -> None:
    owners = federation(10, terms={"colluders": 3})
    manifest = manifest_for(owners.roster, thresholds=Thresholds.for_owners(10, 1))
    assert owners.ask(0, Propose(manifest.hash, manifest.encoded)) == []
    error = owners.errors.pop()[1]
    assert isinstance(error, PolicyRefused)
    assert "colluders" in error.message
    assert owners.ask(
        0, Propose(manifest_for(owners.roster).hash, manifest_for(owners.roster).encoded)
    )
