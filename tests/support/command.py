"""The installed command `blindmerge`, as a person runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blindmerge import cli

__all__ = ["COMMAND", "blindmerge", "blindmerge_here", "environment"]

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


def blindmerge_here(*arguments: str | Path, cwd: Path, cache: Path) -> int:
    """Runs the command in `cwd` and in this process, which saves its start; its exit code.

    Variables, the handler of a signal and commands, all of which it sets, are put back.
    """
    handler = signal.getsignal(signal.SIGTERM)
    commands, groups = list(cli.app.registered_commands), list(cli.app.registered_groups)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**cli._ENVIRONMENT, **environment(cache)}.items():
                patch.setenv(name, value)
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["blindmerge", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
        cli.app.registered_commands[:], cli.app.registered_groups[:] = commands, groups
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return code or 0
