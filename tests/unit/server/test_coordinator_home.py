"""The coordinator's folder: made once, with keys for nobody else, and a roster that it keeps."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from blindmerge.errors import ConfigInvalid
from blindmerge.identity import Roster
from blindmerge.secagg.secret import OsRandomness
from blindmerge_client.setup import make_home as make_owner
from blindmerge_server.config import Home, JobSettings, OwnerKeys
from blindmerge_server.setup import make_home
from support.pico import pico_encoder

NOW = datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "server", "uni", ["localhost"], 9092, OsRandomness(), NOW)


def keys_of(folder: Path, name: str) -> OwnerKeys:
    return OwnerKeys.read(make_owner(folder / name, name, OsRandomness()).public_keys_file)


def test_everything_is_for_this_user_only(home: Home) -> None:
    for path in home.folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert home.folder.stat().st_mode & 0o777 == 0o700


def test_what_was_made_is_read_again(home: Home) -> None:
    settings = home.settings()
    assert (settings.name, settings.port, settings.connect) == ("uni", 9092, "localhost")
    assert len(home.control().reveal()) == 32
    assert home.control().reveal() != home.identity().seed.reveal()


@pytest.mark.parametrize("there", ["identity", "notes.txt"])
def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConfigInvalid, match="is not empty; keys are never overwritten"):
        make_home(tmp_path, "uni", ["localhost"], 9092, OsRandomness(), NOW)
    assert (tmp_path / there).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_the_roster_grows_and_shrinks_with_its_owners(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="there are no owners yet"):
        home.roster()
    members = []
    for name in ("cleo", "anna", "bert"):
        keys = keys_of(tmp_path, name)
        members.append(keys.member)
        assert home.add(keys) == home.add(keys) == Roster.of(members)
        assert Roster.decode(home.roster_file.read_bytes()) == Roster.of(members)
    assert home.remove("anna") == 2
    left = Roster.of([each for each in members if each.name != "anna"])
    assert Roster.decode(home.roster_file.read_bytes()) == home.roster() == left
    assert home.remove("bert") == 1
    assert home.remove("cleo") == 0
    assert not home.roster_file.exists()


@pytest.mark.parametrize("name", ["dora", "../identity", ""])
def test_only_an_owner_is_removed(home: Home, tmp_path: Path, name: str) -> None:
    home.add(keys_of(tmp_path, "anna"))
    with pytest.raises(ConfigInvalid, match="no owner is called"):
        home.remove(name)
    assert home.identity_file.exists()


def test_a_name_or_a_key_is_nobody_elses(home: Home, tmp_path: Path) -> None:
    anna, other = keys_of(tmp_path / "1", "anna"), keys_of(tmp_path / "2", "anna")
    home.add(anna)
    before = home.roster_file.read_bytes()
    for wrong, told in (
        (other, "'anna' is in the roster with other keys"),
        (other.model_copy(update={"name": "bert", "identity": anna.identity}), "has a key of"),
        (other.model_copy(update={"name": "bert", "node": anna.node}), "has a key of 'anna'"),
    ):
        with pytest.raises(ConfigInvalid, match=told):
            home.add(wrong)
    assert home.roster_file.read_bytes() == before
    assert [path.stem for path in home.owners_folder.iterdir()] == ["anna"]


def ssh(key: Any) -> str:
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return str(public.decode())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../anna"},
        {"name": 3},
        {"identity": "0" * 63},
        {"identity": "G" * 64},
        {"node": "ssh-rsa AAAA"},
        {"node": ""},
        {"node": ssh(ec.generate_private_key(ec.SECP256R1()))},
        {"node": ssh(ed25519.Ed25519PrivateKey.generate())},
        {"more": 1},
        None,
    ],
    # Numbers: names with keys in them would differ from process to process.
    ids=range(10),
)
def test_what_is_no_public_keys_file_is_refused(
    home: Home, tmp_path: Path, change: dict[str, Any] | None
) -> None:
    file = make_owner(tmp_path / "anna", "anna", OsRandomness()).public_keys_file
    good = json.loads(file.read_text())
    file.write_text("[" if change is None else json.dumps(good | change))
    with pytest.raises(ConfigInvalid, match=r"is not the public-keys.json of an owner") as caught:
        home.add(OwnerKeys.read(file))
    assert caught.value.hint


def test_a_private_file_in_its_place_is_refused_and_not_shown(tmp_path: Path) -> None:
    owner = make_owner(tmp_path / "anna", "anna", OsRandomness())
    with pytest.raises(ConfigInvalid) as caught:
        OwnerKeys.read(owner.node_file)
    assert "PRIVATE" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("file", ["ca.crt", "ca.key", "server.crt", "server.key"])
def test_a_certificate_is_renewed_only_from_all_files(home: Home, file: str) -> None:
    path = home.authority_file.with_name(file)
    before, at = home.certificate_file.read_bytes(), NOW + datetime.timedelta(days=1)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ConfigInvalid, match=f"{file}: cannot be read"):
        home.renew((), at)
    path.write_bytes(content)
    if file == "ca.key":
        path.chmod(0o604)
        with pytest.raises(ConfigInvalid, match="others can read or change it"):
            home.renew((), at)
        path.chmod(0o600)
    assert home.certificate_file.read_bytes() == before
    home.renew((), at)
    assert home.certificate_file.read_bytes() != before


@pytest.mark.parametrize("file", ["identity", "control"])
@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_damaged_key_is_refused(home: Home, file: str, size: int) -> None:
    (home.folder / file).write_bytes(bytes(size))
    with pytest.raises(ConfigInvalid, match=f"{file}: is not 32 bytes"):
        home.identity() if file == "identity" else home.control()


def test_a_key_that_others_can_read_is_not_used(home: Home) -> None:
    for path in (home.identity_file, home.control_file):
        path.chmod(0o644)
    for use in (home.identity, home.control):
        with pytest.raises(ConfigInvalid, match="others can read or change it"):
            use()


def test_the_job_template_is_a_job_once_the_base_is_there(home: Home) -> None:
    with pytest.raises(ConfigInvalid, match=r"base: .* does not exist"):
        JobSettings.read(home.job_template)
    pico_encoder(home.folder / "models" / "base", "bert", labels=("no", "yes"))
    job = JobSettings.read(home.job_template)
    defaults = {
        name: field.default
        for name, field in JobSettings.model_fields.items()
        if not field.is_required()
    }
    assert {name: getattr(job, name) for name in defaults} == defaults


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('name = "My job"', 'name: "My job" is not a name'),
        ("name = 3", "name: 3 is not"),
        ("days = 0", "days: 0 is out of range"),
        ("patience_hours = inf", "patience_hours: inf is not a finite number"),
        ("bits = 16", "bits: 16 is not allowed"),
        ('bits = 32\nmethod = { name = "fisher" }', "32 bits are too few for 'fisher'"),
        ('method = { name = "regmaen" }', "regmaen"),
        ("exampels = 3", 'did you mean "examples"'),
    ],
)
def test_a_mistake_in_a_job_is_told(home: Home, line: str, told: str) -> None:
    keys = tuple(f"{each.partition(' ')[0]} " for each in line.splitlines())
    text = home.job_template.read_text().splitlines()
    kept = [each for each in text if not each.startswith(keys)]
    pico_encoder(home.folder / "models" / "base", "bert", labels=("no", "yes"))
    (home.folder / "j.toml").write_text("\n".join([line, *kept]))
    with pytest.raises(ConfigInvalid) as caught:
        JobSettings.read(home.folder / "j.toml")
    assert told in caught.value.message
    assert "explain every key" in caught.value.hint
