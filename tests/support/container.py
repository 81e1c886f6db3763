"""What a container engine does to a command, with the kernel's own means and as root.

[*network.inside("anna"), *contained(10002, 10000, writable=[log]), "blindmerge", ...]

Another user without capabilities, who can get none back; a root file system that cannot be
written to, save some folders; Python's own folder, wherever it is.
"""

import os
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.tree import ROOT

__all__ = ["closed_to_others", "contained"]


def contained(user: int, group: int, writable: Sequence[Path]) -> list[str]:
    """The words before a command that runs so.   writable: folders, and HOME the first of them."""
    steps = ["set -eu", *_python_for_all()]
    steps += [f"mount --bind {quoted} {quoted}" for quoted in map(_quoted, writable)]
    steps += ["mount -o remount,bind,ro /", f"export HOME={_quoted(writable[0])}"]
    limits = "--clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all"
    steps += [f'exec setpriv --reuid {user} --regid {group} {limits} "$@"']
    return ["unshare", "--mount", "sh", "-c", "\n".join(steps), "container"]


def closed_to_others() -> str:
    """A folder of the project or its packages that other users cannot enter; empty if none is."""
    needed = {ROOT, *(Path(path) for path in sys.path if "site-packages" in path)}
    closed = sorted({str(folder) for path in needed for folder in _closed(path.resolve())})
    return closed[0] if closed else ""


def _python_for_all() -> Iterator[str]:
    """Lays Python's folder open where it lies in one that is closed, such as /root."""
    python = Path(sys.base_prefix)
    if closed := next(_closed(python), None):
        yield f"mount --bind {_quoted(python)} /mnt"
        yield f"mount -t tmpfs -o mode=0755 tmpfs {_quoted(closed)}"
        yield f"mkdir -p {_quoted(python)}"
        yield f"mount --move /mnt {_quoted(python)}"


def _closed(path: Path) -> Iterator[Path]:
    """The folders on the way to a path that not everybody may enter."""
    for folder in (*reversed(path.parents), path):
        if not os.stat(folder).st_mode & stat.S_IXOTH:
            yield folder


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
