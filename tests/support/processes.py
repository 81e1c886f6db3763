"""Processes that tests start, and waiting for what they do."""

import os
import sys
import time
from collections.abc import Callable

__all__ = ["environment", "wait_until"]

_LOOK_S = 0.05


def environment() -> dict[str, str]:
    """Of a process that finds the packages where this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def wait_until(holds: Callable[[], bool], what: str, deadline_s: float = 300) -> None:
    """Comes back as soon as it holds.   Raises TimeoutError with `what` if it never does."""
    end_s = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > end_s:
            raise TimeoutError(f"waited {deadline_s:.0f} s for: {what}")
        time.sleep(_LOOK_S)
