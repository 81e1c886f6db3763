"""The folders are what the build, the type checker and the reader expect."""

import ast
import re
from pathlib import Path

import pytest

from support.tree import PACKAGES, ROOT, parsed, texts


@pytest.mark.parametrize(("folder", "package"), PACKAGES.items())
def test_source_folder_holds_one_package_and_nothing_else(folder: str, package: str) -> None:
    # A stray `server/foo.py` would be importable as the top-level module `foo`.
    entries = {path.name for path in (ROOT / folder).iterdir()} - {"__pycache__"}
    assert entries == {package}
    assert (ROOT / folder / package / "__init__.py").is_file()


@pytest.mark.parametrize(("folder", "package"), PACKAGES.items())
def test_package_is_typed(folder: str, package: str) -> None:
    assert (ROOT / folder / package / "py.typed").read_bytes() == b""


@pytest.mark.parametrize(("folder", "package"), PACKAGES.items())
def test_folders_with_modules_are_packages(folder: str, package: str) -> None:
    folders = {path.parent for path in (ROOT / folder / package).rglob("*.py")}
    bare = [str(path) for path in sorted(folders) if not (path / "__init__.py").is_file()]
    assert not bare


def test_test_files_have_different_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# Each with a group of one character, so that this file does not match itself.
OUTSIDE = {
    "a folder of one machine": r"(?<![\w.])/wor[k]/|/tmp/[w]\b|/opt/(pyp[i]|wheel[s])",
    "a package registry of one machine": r"index-ur[l]|find-link[s]|registry\s*=\s*http",
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_no_text_points_outside_the_project(what: str) -> None:
    pattern = re.compile(OUTSIDE[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_patterns_find_what_they_look_for() -> None:
    work, temporary = "/wo" + "rk/main", "/t" + "mp/w/venv"
    for line in (f"cd {work}", f"'{temporary}'", "file:///op" + "t/pypi/simple"):
        assert re.search(OUTSIDE["a folder of one machine"], line)
    for line in ("./network/x", "https://example.org/work/x", "/tmp/work", "frame" + work):  # noqa: S108
        assert not re.search(OUTSIDE["a folder of one machine"], line)


# Raised by hand whenever tests are added; lowered by nobody.
FEWEST_TESTS = 1240


def _tests_in(path: Path) -> int:
    return sum(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for node in ast.walk(parsed(path))
    )


def test_suite_does_not_shrink() -> None:
    count = sum(_tests_in(path) for path in (ROOT / "tests").rglob("test_*.py"))
    assert count >= FEWEST_TESTS, f"{count} test functions, there were {FEWEST_TESTS}"
