"""Files are whole or absent."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from blindmerge.errors import ResourceMissing
from blindmerge.files import explaining, replacing, save_array


def fail_in_the_middle(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


def fail_in_the_middle_of_a_folder(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("half")
        raise error


def test_a_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle(path, ZeroDivisionError())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_no_half_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_in_the_middle_of_a_folder(tmp_path / "folder", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_of_this_number_left_is_not_used(tmp_path: Path) -> None:
    left = tmp_path / f".folder.{os.getpid()}.tmp"
    left.mkdir()
    (left / "stale").write_text("stale")
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "mine").touch()
        path.mkdir()
        (path / "theirs").touch()
    assert [file.name for file in path.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_another_process_makes_at_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    rename = Path.replace

    def late(self: Path, target: Path) -> Path:
        path.mkdir()
        (path / "theirs").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", late)
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "mine").touch()
    assert [file.name for file in path.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
    ],
)
def test_what_a_person_can_mend_is_explained(tmp_path: Path, number: int, words: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ResourceMissing, match=words) as raised:
        fail_in_the_middle(path, OSError(number, os.strerror(number)))
    assert str(path) in raised.value.message
    assert "run the same command again" in raised.value.hint
    assert raised.value.exit_code == 7
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fail_in_the_middle(tmp_path / "file", FileNotFoundError(errno.ENOENT, "not there"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs the device /dev/full")
def test_a_disk_that_fills_up_in_the_middle_of_an_array_is_explained() -> None:
    # /dev/full refuses every write. Larger than Python's write buffer, smaller than a chunk.
    for count in (1, 100_000):
        with pytest.raises(ResourceMissing, match="disk is full"), explaining(Path("somewhere")):
            save_array(Path("/dev/full"), np.zeros(count))


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4), (70_000, 50)])
def test_arrays_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape)
    for number, each in enumerate((np.asarray(array), np.asarray(array).T)):
        save_array(tmp_path / str(number), each)
        np.testing.assert_array_equal(np.load(tmp_path / str(number)), each)
