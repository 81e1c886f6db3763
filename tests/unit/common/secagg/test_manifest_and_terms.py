"""The manifest of a sum: one encoding; thresholds that are unsafe do not exist."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from blindmerge import canonical
from blindmerge.encoding import uniform
from blindmerge.errors import PeerInvalid, PolicyRefused, ProtocolBroken
from blindmerge.identity import Roster
from blindmerge.secagg.manifest import SumManifest, Terms, Thresholds
from blindmerge.secagg.messages import Limits
from support.secure_sum import BASE, NOW, PLAN, identities, manifest_for, three_parts

ROSTER = Roster.of([identity.member for identity in identities(5)])
SEVEN = Roster.of([identity.member for identity in identities(7)])
TERMS = Terms(ROSTER, PLAN, BASE)


def test_a_manifest_survives_its_encoding_and_every_field_is_in_its_hash() -> None:
    manifest = manifest_for(ROSTER, phases=2)
    assert SumManifest.decode(manifest.encoded) == manifest
    others = [
        manifest_for(ROSTER, phases=2, phase=1),
        manifest_for(ROSTER, phases=2, attempt=1),
        manifest_for(ROSTER, phases=2, job="other"),
        manifest_for(ROSTER, phases=2, bits=48),
        manifest_for(ROSTER, phases=2, prg="chacha20"),
        manifest_for(ROSTER, phases=2, block_elements=5),
        manifest_for(ROSTER, phases=2, thresholds=Thresholds.for_owners(5, 2)),
        manifest.model_copy(update={"expires": NOW + 61}),
        manifest.model_copy(update={"plan": "c" * 64}),
        manifest.model_copy(update={"noise": {"std": 1.0}}),
    ]
    hashes = [SumManifest.model_validate(other.model_dump()).hash for other in others]
    assert len({manifest.hash, *hashes}) == 1 + len(others)


def test_bytes_that_leave_out_or_add_a_field_are_refused() -> None:
    value = canonical.decode(manifest_for(ROSTER).encoded)
    assert isinstance(value, dict)
    for changed in (
        {key: item for key, item in value.items() if key != "noise"},
        {key: item for key, item in value.items() if key != "job"},
        value | {"extra": 1},
        value | {"phase": 1},
        value | {"attempt": -1},
        value | {"job": "Upper Case"},
        value | {"prg": "mt19937"},
    ):
        with pytest.raises(PeerInvalid):
            SumManifest.decode(canonical.encode(changed))


@pytest.mark.parametrize(
    ("owners", "colluders", "dropouts", "holders", "threshold"),
    [
        (2, 1, 0, 2, 2),  # two owners
        (5, 4, 0, 5, 5),  # one honest owner
        (5, 1, 2, 5, 3),  # threshold too low: two quorums may share a colluder only
        (5, 1, 0, 5, 6),  # threshold too high
        (5, 1, 1, 4, 4),  # not the complete graph
        (5, 1, 2, 5, 4),  # more drop-outs than the threshold allows
        (300, 30, 30, 65, 46),  # a sparser graph than the table
        (300, 30, 30, 66, 45),
        (300, 100, 120, 66, 46),  # no quorum left
        (300, 30, 30, 66, 50),  # safe, but too many holders must stay
        (300, 30, 30, 66, 67),  # more shares than holders
        (300, 30, 30, 300, 166),  # not a sparse graph
        (2000, 900, 500, 1001, 951),  # nothing is safe here, which a search would find in hours
    ],
)
def test_unsafe_thresholds_do_not_exist(
    owners: int, colluders: int, dropouts: int, holders: int, threshold: int
) -> None:
    with pytest.raises(ValidationError):
        Thresholds(
            owners=owners,
            colluders=colluders,
            dropouts=dropouts,
            holders=holders,
            threshold=threshold,
        )


def test_default_thresholds() -> None:
    assert Thresholds.for_owners(10).threshold == 7
    assert Thresholds.for_owners(100).quorum == 67
    sparse = Thresholds.for_owners(1000)
    assert (sparse.holders, sparse.threshold, sparse.quorum) == (95, 66, 551)
    # More holders and a higher threshold than needed are safe.
    assert Thresholds(owners=300, colluders=30, dropouts=30, holders=80, threshold=54).quorum == 166
    assert Thresholds(owners=5, colluders=1, dropouts=0, holders=5, threshold=5).quorum == 5


def test_terms_refuse_by_naming_the_rule() -> None:
    manifest = manifest_for(ROSTER)
    TERMS.check(manifest, NOW)
    smaller = Roster(ROSTER.members[:4])
    for terms, refused, now, rule in (
        (TERMS, manifest_for(smaller), NOW, "roster"),
        (replace(TERMS, plan="c" * 64), manifest, NOW, "plan"),
        (replace(TERMS, base="c" * 64), manifest, NOW, "base model"),
        (replace(TERMS, colluders=2), manifest, NOW, "fewer than 2 colluders"),
        (
            replace(TERMS, roster=SEVEN),
            manifest_for(SEVEN, thresholds=Thresholds.for_owners(7, 1)),
            NOW,
            "fewer than 2 colluders",
        ),
        (replace(TERMS, least_owners=5), manifest, NOW, "fewer than 5 owners"),
        (TERMS, manifest_for(ROSTER, attempt=3), NOW, "attempts"),
        (TERMS, manifest, NOW + 60, "expired"),
    ):
        with pytest.raises(PolicyRefused, match=rule):
            terms.check(refused, now)


def test_blocks_are_numbered_through_all_parts() -> None:
    # 7, 5 and 8 numbers of 6 bytes, at most 4, 9 and 3 of them in a block.
    manifest = manifest_for(ROSTER, parts=three_parts(5, bits=48))
    assert manifest.blocks == 6
    assert [list(manifest.blocks_of(part)) for part in range(3)] == [[0, 1], [2], [3, 4, 5]]
    places = [manifest.locate(block) for block in range(6)]
    assert places == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
    assert [manifest.wire_bytes(block) for block in range(6)] == [24, 18, 30, 18, 18, 12]
    for wrong in (-1, 6):
        with pytest.raises(ProtocolBroken, match=f"no block {wrong}"):
            manifest.wire_bytes(wrong)
    for wrong in (-1, 3):
        with pytest.raises(ProtocolBroken, match=f"no part {wrong}"):
            manifest.blocks_of(wrong)


def test_parts_share_ring_and_owners_and_none_is_missing() -> None:
    first, *others = three_parts(5)
    for parts in ((), (first, three_parts(5, bits=48)[1]), (*others, three_parts(4)[0])):
        manifest = manifest_for(ROSTER)
        with pytest.raises(ValidationError):
            SumManifest.model_validate(manifest.model_dump() | {"parts": parts})


def test_limits_leave_room_for_the_largest_block_of_any_part() -> None:
    small, large = (
        uniform({"a": (size,)}, 8, owners=5, bits=64, block_elements=size) for size in (1, 10**5)
    )
    manifest = manifest_for(ROSTER, parts=[small, large, small])
    assert Limits.of(manifest).message_bytes > 8 * 10**5
