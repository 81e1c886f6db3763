"""Who imports whom, and what is light to import."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.tree import PACKAGES, ROOT, imported_modules, module_name, modules, parsed

HEAVY = ("accelerate", "flwr", "ray", "torch", "transformers")
FORBIDDEN = {
    "blindmerge": ("blindmerge_client", "blindmerge_server", *HEAVY),
    "blindmerge_client": ("blindmerge_server",),
    "blindmerge_server": ("blindmerge_client",),
}
# The simulation runs both sides on one machine: the one place where they meet.
EXCEPTION = ("blindmerge_server.simulate", "blindmerge_client")


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _broken_rules(module: str, imported: str) -> bool:
    if _inside(module, EXCEPTION[0]) and _inside(imported, EXCEPTION[1]):
        return False
    package = module.partition(".")[0]
    return any(_inside(imported, forbidden) for forbidden in FORBIDDEN[package])


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_keep_the_architecture(path: Path) -> None:
    module = module_name(path)
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for line, imported in imported_modules(parsed(path))
        if _broken_rules(module, imported)
    ]
    assert not broken


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_are_absolute(path: Path) -> None:
    relative = [line for line, name in imported_modules(parsed(path)) if name.startswith(".")]
    assert not relative, f"{path}: relative imports in lines {relative}"


def test_rules_see_what_they_forbid() -> None:
    assert _broken_rules("blindmerge.plan", "torch.nn")
    assert _broken_rules("blindmerge.plan", "blindmerge_client.data")
    assert _broken_rules("blindmerge_client.app", "blindmerge_server.rounds.Rounds")
    assert _broken_rules("blindmerge_server.solve", "blindmerge_client")
    assert not _broken_rules("blindmerge_server.simulate.run", "blindmerge_client.data")
    assert _broken_rules("blindmerge_server.simulated", "blindmerge_client.data")
    assert not _broken_rules("blindmerge.plan", "torchless")
    assert not _broken_rules("blindmerge_client.app", "blindmerge.plan")


def test_walk_finds_imports_in_functions() -> None:
    import ast

    tree = ast.parse("def f():\n    from torch import nn\n    import flwr.client\nfrom . import x")
    assert sorted(imported_modules(tree)) == [(2, "torch.nn"), (3, "flwr.client"), (4, "..x")]


@pytest.mark.parametrize("module", ["blindmerge", "blindmerge.plan", "blindmerge.merge"])
def test_core_is_light_to_import(module: str) -> None:
    heavy = (*HEAVY, *(package for package in PACKAGES.values() if package != "blindmerge"))
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({heavy!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
