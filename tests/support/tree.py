"""The repository as text and syntax, for tests that look at the code and do not run it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["PACKAGES", "ROOT", "imported_modules", "module_name", "modules", "parsed", "texts"]

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "common": "blindmerge",
    "client": "blindmerge_client",
    "server": "blindmerge_server",
}
"""The one package of each source folder."""

_CACHES = {"__pycache__", "node_modules", ".git"}  # the last is a file in a worktree
_TOP = ("common", "client", "server", "tests", "deploy", "examples", ".ci", ".github")


@cache
def modules() -> tuple[Path, ...]:
    """Every Python file of the three packages, sorted."""
    found = (path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
    return tuple(sorted(path for path in found if not _CACHES & set(path.parts)))


def module_name(path: Path) -> str:
    """The name under which a file of a source folder is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import, also inside functions and `if TYPE_CHECKING`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` has no module; the dot is kept, so that a test can refuse it.
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file that belongs to the project, with its text."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in _TOP:
        files += (path for path in (ROOT / folder).rglob("*") if path.is_file())
    for path in sorted(files):
        if _CACHES & set(path.parts):
            continue
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or a checkpoint
