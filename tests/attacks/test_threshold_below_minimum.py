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


@pytest.mark.parametrize(
    ("demanded", "refused", "allowed"),
    [
        ({}, 2, 3),  # a third of ten, if the owner says nothing
        ({"colluders": 4}, 3, 4),
        ({"colluders": 1}, None, 1),
    ],
)
def test_fewer_tolerated_colluders_than_the_owner_demands_are_refused(
    demanded: dict[str, int], refused: int | None, allowed: int
) -> None:
    owners = federation(10, terms=demanded)
    if refused is not None:
        manifest = manifest_for(owners.roster, thresholds=Thresholds.for_owners(10, refused))
        assert owners.ask(0, Propose(manifest.hash, manifest.encoded)) == []
        error = owners.errors.pop()[1]
        assert isinstance(error, PolicyRefused)
        assert f"fewer than {allowed} colluders" in error.message
    manifest = manifest_for(owners.roster, thresholds=Thresholds.for_owners(10, allowed))
    assert owners.ask(0, Propose(manifest.hash, manifest.encoded))


def test_in_a_sparse_graph_an_owner_that_says_nothing_demands_a_tenth() -> None:
    owners = federation(200)
    few, enough = (
        manifest_for(owners.roster, thresholds=Thresholds.for_owners(200, colluders))
        for colluders in (19, 20)
    )
    assert owners.ask(0, Propose(few.hash, few.encoded)) == []
    assert "fewer than 20 colluders" in owners.errors.pop()[1].message
    assert owners.ask(0, Propose(enough.hash, enough.encoded))
