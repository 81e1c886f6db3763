"""`client init`: keys nobody else reads, files that are never overwritten, no permission."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from blindmerge.errors import BlindmergeError, ConfigInvalid
from blindmerge.secagg.secret import OsRandomness
from blindmerge_client.config import Policy
from blindmerge_client.fleet import read_node_key
from blindmerge_client.setup import make_home
from support.randomness import CounterRandomness


def test_everything_is_for_this_user_only(tmp_path: Path) -> None:
    home = make_home(tmp_path / "a", "hospital-a", OsRandomness())
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.folder.iterdir()}
    assert modes.pop("jobs") == home.folder.stat().st_mode & 0o777 == 0o700
    assert modes == dict.fromkeys(
        ("client.toml", "policy.toml", "identity", "node", "public-keys.json"), 0o600
    )


def test_the_public_keys_are_those_of_the_private_ones(tmp_path: Path) -> None:
    home = make_home(tmp_path / "a", "hospital-a", OsRandomness())
    keys = json.loads(home.public_keys_file.read_text())
    assert set(keys) == {"name", "identity", "node"}
    assert keys["name"] == "hospital-a"
    assert keys["identity"] == home.identity("hospital-a").public.hex()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    private = read_node_key(home.node_file)
    public = load_ssh_public_key(keys["node"].encode())
    assert public.public_bytes(*form) == private.public_key().public_bytes(*form)
    assert home.identity("hospital-a").seed.reveal().hex() not in home.public_keys_file.read_text()


def test_the_new_policy_allows_nothing_and_every_key_is_explained(tmp_path: Path) -> None:
    home = make_home(tmp_path / "a", "hospital-a", OsRandomness())
    text = home.policy_file.read_text()
    assert home.policy() == Policy()
    for key in Policy.model_fields:
        assert f"\n{key} = " in text or f"\n# {key} = " in text or f"\n[{key}]" in text, key
    assert home.client().name == "hospital-a"


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666])
def test_an_identity_that_others_can_read_or_change_is_not_used(tmp_path: Path, mode: int) -> None:
    home = make_home(tmp_path / "a", "hospital-a", OsRandomness())
    home.identity_file.chmod(mode)
    with pytest.raises(ConfigInvalid, match="identity: others can read or change it") as caught:
        home.identity("hospital-a")
    assert caught.value.hint == f"chmod 600 '{home.identity_file}'"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o660])
def test_an_identity_may_come_from_a_secret_of_a_container(tmp_path: Path, mode: int) -> None:
    home = make_home(tmp_path / "a", "hospital-a", OsRandomness())
    home.identity_file.chmod(mode)
    home.identity("hospital-a")


@pytest.mark.parametrize("there", ["notes.txt", "identity", "client.toml"])
def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConfigInvalid, match="is not empty; keys are never overwritten"):
        make_home(tmp_path, "hospital-a", OsRandomness())
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ConfigInvalid):
        make_home(tmp_path / "a", "hospital-a", OsRandomness())
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "Hospital", "a b", "../a", "-a", "a" * 65, "ä"])
def test_a_name_that_no_roster_takes_is_refused_before_anything_is_made(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(BlindmergeError, match="malformed"):
        make_home(tmp_path / "a", name, CounterRandomness("a"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read"), (b"", "is no key"), (b"-----BEGIN OPENSSH", "is no key")],
)
def test_a_node_key_that_is_none_is_refused(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "node").write_bytes(content)
    with pytest.raises(ConfigInvalid, match=told):
        read_node_key(tmp_path / "node")
