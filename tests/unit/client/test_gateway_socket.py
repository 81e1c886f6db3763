"""Who may use the gateway's socket."""

import grp
import os
import socket
from pathlib import Path

import pytest

from blindmerge.errors import ConfigInvalid, ResourceMissing
from blindmerge_client.gateway import _listening


def test_nobody_else_may_use_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with _listening(path, None):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_a_named_group_may_use_the_socket(tmp_path: Path) -> None:
    path, mine = tmp_path / "gateway.sock", grp.getgrgid(os.getgid())
    with _listening(path, mine.gr_name):
        assert path.stat().st_mode & 0o777 == 0o660
        assert path.stat().st_gid == mine.gr_gid


def test_an_unknown_group_is_refused_by_name(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigInvalid, match=r"'no-such-group'.*there is no such group"),
        _listening(tmp_path / "gateway.sock", "no-such-group"),
    ):
        pass


def test_a_second_gateway_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with _listening(path, None):
        with (
            pytest.raises(ConfigInvalid, match="another gateway listens"),
            _listening(path, None),
        ):
            pass
        assert path.is_socket()


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with _listening(path, None) as listener:
        assert listener.getsockname() == str(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("data")
    with pytest.raises(ConfigInvalid, match="is no socket"), _listening(path, None):
        pass
    assert path.read_text() == "data"


def test_a_path_that_is_too_long_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceMissing, match="cannot listen") as caught,
        _listening(tmp_path / ("s" * 108), None),
    ):
        pass
    assert "107 bytes" in caught.value.hint


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with (
        pytest.raises(ConfigInvalid, match="others may write"),
        _listening(tmp_path / "gateway.sock", None),
    ):
        pass


def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    if tmp_path.stat().st_uid == 0:  # root may always put another socket there
        os.chown(tmp_path, 54322, -1)
    with (
        pytest.raises(ConfigInvalid, match="others may write"),
        _listening(tmp_path / "gateway.sock", None),
    ):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a link that is somebody else's")
def test_a_link_of_somebody_else_to_a_folder_of_mine_is_refused(tmp_path: Path) -> None:
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.mkdir(mode=0o700)
    link.symlink_to(mine)
    with _listening(link / "gateway.sock", None):
        pass
    os.lchown(link, 54321, -1)
    with (
        pytest.raises(ConfigInvalid, match="others may write"),
        _listening(link / "gateway.sock", None),
    ):
        pass
    assert not list(mine.glob("*.sock"))
