"""client.toml and policy.toml: what a good one becomes, and what each mistake says."""

import datetime
from pathlib import Path

import pytest

from blindmerge.errors import BlindmergeError, ConfigInvalid, PeerInvalid
from blindmerge.identity import Roster
from blindmerge.merge import METHODS
from blindmerge_client.config import Client, Home, Policy
from support.secure_sum import identities

GOOD = """
name = "hospital-a"
base = "base"
model = "/models/own"
train = "data/train.jsonl"
validation = "data/validation.jsonl"
server = "fl.example.org:9092"
"""
HASH = "0123456789abcdef" * 4


def client(home: Home, text: str) -> Client:
    home.client_file.write_text(text)
    return home.client()


def policy(home: Home, text: str) -> Policy:
    home.policy_file.write_text(text)
    return home.policy()


def test_paths_are_relative_to_the_folder(tmp_path: Path) -> None:
    read = client(Home(tmp_path), GOOD)
    assert read.base == tmp_path / "base"
    assert read.model == Path("/models/own")
    assert read.train == tmp_path / "data" / "train.jsonl"
    assert (read.ca, read.socket) == (tmp_path / "ca.crt", tmp_path / "gateway.sock")
    assert read.test is None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "hospital-a"', 'name = "Hospital A"', 'name: "Hospital A" is not a name'),
        ('base = "base"', "base = 3", "base: 3 is not a path in quotes"),
        ('base = "base"', 'base = ""', 'base: "" is not a path in quotes'),
        ('base = "base"', "", "base: is missing; give the folder of the model that everybody"),
        ('base = "base"', 'base = "b"\nbsae = "c"', "bsae: is not a key of this table; did you m"),
        (":9092", "", 'server: "fl.example.org" is not an address'),
        (":9092", ":65536", "server: "),
        ("name =", "name", "line 2, column"),
    ],
)
def test_a_mistake_is_told_with_file_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        client(Home(tmp_path), GOOD.replace(old, new))
    assert caught.value.message.startswith(f"{tmp_path / 'client.toml'}: ")
    assert told in caught.value.message
    assert caught.value.hint


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="has 2 mistakes"):
        client(Home(tmp_path), GOOD.replace('"base"', "1").replace(":9092", ""))


def test_data_that_is_not_there_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("{}")
    with pytest.raises(ConfigInvalid) as caught:
        client(home, GOOD + 'test = "data/train.jsonl"\n').check(home.client_file)
    first, *rest = caught.value.message.splitlines()
    assert first.endswith("client.toml has 4 mistakes:")
    keys = [line.split(":")[0].strip() for line in rest]
    assert keys == ["base", "model", "validation", "test"]


def test_an_empty_policy_is_a_policy_that_allows_nothing(tmp_path: Path) -> None:
    read = policy(Home(tmp_path), "")
    assert (read.roster, read.expires, read.approve) == (None, None, "ask")
    assert not any((read.coordinators, read.base_models, read.methods, read.layers))


def test_a_policy_is_read(tmp_path: Path) -> None:
    text = f"""
    roster = "{HASH}"
    methods = ["regmean"]
    expires = 2027-01-31
    [coordinators]
    uni = "{HASH}"
    """
    read = policy(Home(tmp_path), text)
    assert read.expires == datetime.date(2027, 1, 31)
    assert [(m.name, m.public.hex()) for m in read.members] == [("uni", HASH)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('roster = "abc"', 'roster: "abc" is not 64 hex digits'),
        (f'[coordinators]\n"No Name" = "{HASH}"', 'coordinators: of "No Name": "No Name" is not'),
        ('[coordinators]\nuni = "abc"', 'coordinators: of "uni": "abc" is not 64 hex digits'),
        ("coordinators = 3", "coordinators: 3 is not a table"),
        ('methods = ["regmaen"]', f"known: {', '.join(sorted(METHODS))}"),
        ("least_owners = 2", "least_owners: 2 is out of range; it must be at least 3"),
        ("require = []", 'require: "masks" is missing'),
        ('require = ["noise"]', 'require: "masks" is missing'),
        ('expires = "soon"', 'expires: "soon" is not a date such as 2027-01-31'),
        ('approve = "yes"', 'approve: "yes" is not allowed; choose "ask" or "automatic"'),
        ("rows_factor = nan", "rows_factor: nan is not a finite number"),
        ("max_jobs = true", "max_jobs: true is not a whole number"),
        ("max_job = 1", 'max_job: is not a key of this table; did you mean "max_jobs"?'),
    ],
)
def test_a_mistake_of_a_policy_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        policy(Home(tmp_path), text)
    assert caught.value.message.startswith(f"{tmp_path / 'policy.toml'}: ")
    assert told in caught.value.message


def test_only_the_pinned_roster_is_read(tmp_path: Path) -> None:
    home, roster = Home(tmp_path), Roster.of([each.member for each in identities(3)])
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        home.roster(HASH)
    home.roster_file.write_bytes(roster.encode())
    assert home.roster(roster.sha256.hex()) == roster
    with pytest.raises(PeerInvalid, match="pinned"):
        home.roster(HASH)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33), None], ids=["0", "31", "33", "none"])
def test_a_damaged_identity_is_refused(tmp_path: Path, seed: bytes | None) -> None:
    home = Home(tmp_path)
    if seed is not None:
        home.identity_file.write_bytes(seed)
        home.identity_file.chmod(0o600)
    with pytest.raises(BlindmergeError, match="identity"):
        home.identity("hospital-a")
