"""The installed command `blindmerge`, as a person runs it."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["COMMAND", "blindmerge", "environment"]

COMMAND = Path(sys.executable).parent / "blindmerge"


def environment(cache: Path | None) -> dict[str, str]:
    """The caller's environment, with a cache of its own unless it is None, and width 80."""
    own = {} if cache is None else {"BLINDMERGE_CACHE": str(cache)}
    return os.environ | {"COLUMNS": "80"} | own


def blindmerge(
    *arguments: str | Path, cwd: Path, cache: Path | None
) -> subprocess.CompletedProcess[str]:
    """Runs the command in `cwd` and returns what it printed."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(cache),
        capture_output=True,
        text=True,
        check=False,
    )
