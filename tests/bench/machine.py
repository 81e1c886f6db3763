"""What a benchmark ran on."""

import platform
from pathlib import Path

__all__ = ["processor"]


def processor() -> str:
    """Its name, or its kind where the system tells no name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
