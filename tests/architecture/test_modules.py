"""Every module says what it is for and what is public, and fits on a few screens."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tree import ROOT, module_name, modules, parsed

FILE_LINES, FUNCTION_LINES = 400, 50
PYTHON = sorted([*modules(), *(ROOT / "tests").rglob("*.py")])
each_module = pytest.mark.parametrize("path", modules(), ids=module_name)
each_file = pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def listed(tree: ast.Module) -> list[str] | None:
    """The names in `__all__`; None if there is no `__all__`."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign)
            return list(ast.literal_eval(node.value))
    return None


def public(nodes: list[ast.stmt]) -> list[Definition]:
    """The functions and classes among statements whose name has no underscore in front."""
    return [
        node for node in nodes if isinstance(node, Definition) and not node.name.startswith("_")
    ]


def bound(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines, assigns or imports at its top level."""
    for node in tree.body:
        if isinstance(node, Definition):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def registered(node: Definition) -> bool:
    """Whether a decorator like `@app.command()` hands the function to a framework."""
    calls = (part.func for part in node.decorator_list if isinstance(part, ast.Call))
    return any(isinstance(f, ast.Attribute) and f.attr in {"command", "main"} for f in calls)


def listing_order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, each by the alphabet."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


@each_file
def test_file_has_a_docstring_and_is_short(path: Path) -> None:
    tree, lines = parsed(path), len(path.read_text(encoding="utf-8").splitlines())
    assert ast.get_docstring(tree), "no docstring"
    assert lines <= FILE_LINES, f"{lines} lines"


@each_file
def test_functions_are_short(path: Path) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long


@each_module
def test_public_names_are_listed_and_in_order(path: Path) -> None:
    tree = parsed(path)
    names = listed(tree)
    defined = {node.name for node in public(tree.body) if not registered(node)}
    if names is None:
        assert not defined, f"no __all__, but {sorted(defined)}"
        return
    assert names == sorted(set(names), key=listing_order)
    assert defined <= set(names), f"not listed: {sorted(defined - set(names))}"


@each_module
def test_listed_names_exist(path: Path) -> None:
    tree = parsed(path)
    assert set(listed(tree) or ()) <= set(bound(tree))


@each_module
def test_public_functions_and_classes_have_docstrings(path: Path) -> None:
    bare = []
    for node in public(parsed(path).body):
        methods = public(node.body) if isinstance(node, ast.ClassDef) else []
        bare += [
            f"{path.relative_to(ROOT)}:{each.lineno} {each.name}"
            for each in (node, *methods)
            if ast.get_docstring(each) is None and not _overrides_or_overloads(each)
        ]
    assert not bare


def _overrides_or_overloads(node: Definition) -> bool:
    """Whether the contract stands elsewhere: at the parent's method or at the implementation."""
    names = {
        part.attr if isinstance(part, ast.Attribute) else part.id
        for part in node.decorator_list
        if isinstance(part, ast.Attribute | ast.Name)
    }
    return bool(names & {"overload", "override", "setter"})
