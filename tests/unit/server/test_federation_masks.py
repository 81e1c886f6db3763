"""Masks in a federation file: on unless everybody agrees, and with safe numbers."""

from pathlib import Path

import pytest

from blindmerge.errors import ConfigInvalid, PolicyRefused
from blindmerge_client.seat import Membership
from blindmerge_server.simulate.federation import Federation, read_federation
from blindmerge_server.simulate.setting import read_setting
from support.federations import pico_federation

OWNERS = ("alpha", "beta", "gamma")


def read(folder: Path, *job: str, owners: int = 3, owner: str = "") -> Federation:
    """A federation file with more lines in [job], and in each [[owner]]."""
    file = pico_federation(folder, OWNERS[:owners])
    text = file.read_text().replace("[job]", "\n".join(["[job]", *job]))
    file.write_text(text.replace("[[owner]]", f"[[owner]]\n{owner}"))
    return read_federation(file)


def refusal(folder: Path, *job: str, owners: int = 3, owner: str = "") -> list[str]:
    """The mistakes that the file is refused for, without the name of the file."""
    with pytest.raises(ConfigInvalid) as caught:
        read(folder, *job, owners=owners, owner=owner)
    first, *rest = caught.value.message.splitlines()
    return [line.strip() for line in rest] or [first.removeprefix(f"{folder}/federation.toml: ")]


def test_without_masks_every_owner_must_allow_it(tmp_path: Path) -> None:
    off = 'masks = "off"'
    assert read(tmp_path, off, owner="allow_masks_off = true").job.masks == "off"
    expected = [
        f'owner.{name}.allow_masks_off: is not true, but the job has masks = "off"; '
        "every owner must allow it"
        for name in OWNERS
    ]
    assert refusal(tmp_path, off) == expected
    assert refusal(tmp_path, off, owner="allow_masks_off = false") == expected


def test_one_owner_that_does_not_allow_it_is_named(tmp_path: Path) -> None:
    read(tmp_path, 'masks = "off"', owner="allow_masks_off = true")
    file = tmp_path / "federation.toml"
    head, _, tail = file.read_text().rpartition("allow_masks_off = true\n")
    file.write_text(head + tail)
    with pytest.raises(ConfigInvalid, match=r"gamma\.allow_masks_off: is not true") as caught:
        read_federation(file)
    assert "alpha" not in caught.value.message


def test_masks_may_be_allowed_off_and_be_on(tmp_path: Path) -> None:
    federation = read(tmp_path, owner="allow_masks_off = true")
    assert federation.job.masks == "on"
    assert all(owner.allow_masks_off for owner in federation.owners)


def test_two_owners_need_masks_off(tmp_path: Path) -> None:
    assert refusal(tmp_path, owners=2) == [
        "owner: 2 are too few for masks, since each would learn the other's numbers from the sum; "
        'use at least 3 owners, or masks = "off"'
    ]
    allowed = read(tmp_path, 'masks = "off"', owners=2, owner="allow_masks_off = true")
    assert len(allowed.owners) == 2


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("colluders = 2", "job.colluders: 2 of 3 owners leave no two honest ones"),
        ("colluders = 0", "job.colluders: 0 is out of range; it must be at least 1"),
        ("colluders = 1.0", "job.colluders: 1.0 is not a whole number"),
        ("bits = 16", "job.bits: 16 is not allowed; choose 32, 48 or 64"),
        (
            'bits = 32\ncompare = ["average", "fisher"]',
            "the file: 32 bits are too few for 'fisher': Fisher information differs by more than "
            "that from weight to weight; take 48 or 64",
        ),
        ('masks = "some"', 'job.masks: "some" is not allowed; choose "on" or "off"'),
        ("masks = false", 'job.masks: false is not allowed; choose "on" or "off"'),
    ],
)
def test_wrong_masks_are_named(tmp_path: Path, line: str, mistake: str) -> None:
    assert refusal(tmp_path, line) == [mistake]


def test_masks_can_be_narrow_and_strict(tmp_path: Path) -> None:
    job = read(tmp_path, "bits = 48", "colluders = 1").job
    assert (job.bits, job.colluders) == (48, 1)


def test_simulated_owners_demand_what_the_file_says(tmp_path: Path) -> None:
    """Seven would demand safety against two on their own."""
    file = pico_federation(tmp_path / "few", [f"owner-{n}" for n in range(7)], "colluders = 1")
    file.write_text(file.read_text().replace("[training]", 'method = "average"\n[training]'))
    setting = read_setting(read_federation(file), tmp_path / "cache", tmp_path, print)
    membership = setting.pupils[0].masks
    assert isinstance(membership, Membership)
    assert setting.roster is not None
    (plan,), ((parts, *_),) = setting.plans.values(), setting.layouts.values()
    manifest = plan.sum_manifest(0, parts, attempt=0, expires=2)
    membership.terms(plan).check(manifest, now=1)
    with pytest.raises(PolicyRefused, match="fewer than 2 colluders"):
        Membership(membership.identity, setting.roster).terms(plan).check(manifest, now=1)
