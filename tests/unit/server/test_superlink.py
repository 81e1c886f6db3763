"""The server's door: the coordinator's token, and the nodes of its owners and of nobody else."""

import datetime
import sqlite3
import ssl
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.common.constant import ACCESS_TOKEN_KEY
from flwr.supercore import sql_mixin
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from blindmerge.secagg.secret import OsRandomness, Secret
from blindmerge_client.fleet import bundle_sha256
from blindmerge_client.setup import make_home as make_owner
from blindmerge_server.config import Home, OwnerKeys
from blindmerge_server.flower_run import bundle
from blindmerge_server.setup import make_home
from blindmerge_server.superlink import (
    CoordinatorOnly,
    _Certificate,
    _config,
    _forget_connections,
    _let_in,
    _wait_for_writers,
    access_token,
)

NOW = datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)


@dataclass
class Node:
    public_key: bytes
    node_id: int
    name: str
    status: str = "registered"


@dataclass
class State:
    """Flower's table of nodes, as far as the server uses it."""

    rows: list[Node] = field(default_factory=list)

    def get_node_info(self, *, owner_aids: list[str]) -> list[Node]:
        assert owner_aids
        return self.rows

    def create_node(self, aid: str, account: str, key: bytes, interval: int, *, name: str) -> int:
        assert aid
        assert account
        assert interval > 0
        self.rows.append(Node(key, len(self.rows), name))
        return len(self.rows) - 1

    def delete_node(self, aid: str, node: int) -> None:
        assert aid
        self.rows[node].status = "unregistered"

    def deactivate_node(self, node: int) -> None:
        self.rows[node].status = "offline"


@pytest.fixture
def owners(tmp_path: Path) -> list[OwnerKeys]:
    homes = [make_owner(tmp_path / name, name, OsRandomness()) for name in ("anna", "bert")]
    return [OwnerKeys.read(home.public_keys_file) for home in homes]


def let_in(state: State, owners: list[OwnerKeys]) -> list[str]:
    said: list[str] = []
    _let_in(state, owners, said.append)
    return said


def test_the_token_of_the_coordinator_and_no_other_is_taken() -> None:
    token = access_token(Secret(bytes(32)))
    door = CoordinatorOnly(token)
    good = [("other", "header"), (ACCESS_TOKEN_KEY, token)]
    valid, account = door.validate_tokens_in_metadata(good)
    assert valid
    assert account is not None
    for wrong in ("", token[:-1], token + "0", token.upper(), access_token(Secret(b"1" * 32))):
        assert door.validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, wrong)]) == (False, None)
        assert door.validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, wrong.encode())])[0] is False
    assert door.validate_tokens_in_metadata([]) == (False, None)
    assert door.refresh_tokens(good) == (None, None)
    assert door.get_login_details() is None
    assert door.get_auth_tokens("device") is None


def test_the_token_does_not_show_the_secret() -> None:
    secret = bytes(range(32))
    assert secret.hex() not in access_token(Secret(secret))


def test_owners_are_let_in_once_and_by_their_keys(owners: list[OwnerKeys]) -> None:
    state = State()
    assert let_in(state, owners) == ["the node of 'anna' may enter", "the node of 'bert' may enter"]
    assert let_in(state, owners) == []
    assert [(row.public_key, row.name) for row in state.rows] == [
        (public_key_to_bytes(owner.node_key()), owner.name) for owner in owners
    ]


def test_who_is_not_an_owner_any_more_is_barred_and_may_come_back(
    owners: list[OwnerKeys],
) -> None:
    state = State()
    let_in(state, owners)
    assert len(let_in(state, owners[1:])) == 1
    assert [row.status for row in state.rows] == ["unregistered", "registered"]
    assert let_in(state, owners[1:]) == []
    assert let_in(state, owners) == ["the node of 'anna' may enter"]


def test_an_owner_with_a_new_key_has_one_door_only(owners: list[OwnerKeys], tmp_path: Path) -> None:
    state = State()
    let_in(state, owners)
    new = OwnerKeys.read(make_owner(tmp_path / "new", "anna", OsRandomness()).public_keys_file)
    let_in(state, [new, owners[1]])
    assert [(row.name, row.status) for row in state.rows] == [
        ("anna", "unregistered"),
        ("bert", "registered"),
        ("anna", "registered"),
    ]


def test_a_server_that_was_killed_forgets_who_was_connected(owners: list[OwnerKeys]) -> None:
    state = State()
    let_in(state, owners)
    state.rows[0].status = "online"
    _forget_connections(state)
    assert [row.status for row in state.rows] == ["offline", "registered"]


def test_the_server_is_closed_in_all_that_flower_leaves_open(tmp_path: Path) -> None:
    home: Home = make_home(tmp_path / "s", "uni", ["localhost"], 9092, OsRandomness(), NOW)
    config = _config(home)
    assert (config.insecure, config.enable_supernode_auth) == (False, True)
    assert config.runtime_dependency_install is False
    assert config.isolation == "process"  # it launches no apps
    assert config.superexec_auth_secret == home.control().reveal()
    assert isinstance(config.authn_plugin, CoordinatorOnly)
    assert config.database == str(home.folder / "flower.db")


# Flower asks pathspec for a name that is deprecated there.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_both_sides_build_the_same_bundle() -> None:
    assert bundle().hash_str == bundle_sha256()
    assert b"def " not in bundle().content


def test_large_uploads_at_once_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    flower: Any = sql_mixin
    monkeypatch.setattr(flower, "SQLITE_PRAGMAS", flower.SQLITE_PRAGMAS)
    with closing(sqlite3.connect(":memory:")) as connection:
        _wait_for_writers()
        sql_mixin._set_sqlite_pragmas(connection, None)
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (60_000,)


def test_a_renewed_certificate_is_put_in_use_and_its_end_is_told_once_a_day(
    tmp_path: Path,
) -> None:
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=729, hours=12)
    home = make_home(tmp_path / "s", "uni", ["localhost"], 9092, OsRandomness(), long_ago)
    said: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.certificate_file, home.key_file)
    certificate = _Certificate(home, said.append)
    for _ in range(3):
        certificate.look(context)
    assert len(said) == 1
    assert "ends on" in said[0]
    assert f"blindmerge server renew {home.folder}" in said[0]
    before = served(context, home)
    home.renew((), datetime.datetime.now(datetime.UTC))
    assert home.certificate_file.stat().st_mode & 0o777 == 0o600
    assert served(context, home) == before
    certificate.look(context)
    certificate.look(context)
    assert said[1:] == ["the renewed certificate is in use"]
    assert served(context, home) == ssl.PEM_cert_to_DER_cert(home.certificate_file.read_text())


def served(context: ssl.SSLContext, home: Home) -> bytes | None:
    """The certificate that a client is shown, who trusts the authority, in a handshake."""
    trusting = ssl.create_default_context(cafile=str(home.authority_file))
    here, there = (ssl.MemoryBIO() for _ in range(2))
    client = trusting.wrap_bio(here, there, server_hostname="localhost")
    server = context.wrap_bio(there, here, server_side=True)
    for _ in range(3):
        for each in (client, server):
            with suppress(ssl.SSLWantReadError):
                each.do_handshake()
    return client.getpeercert(binary_form=True)
