"""The Flower app bundle of blindmerge: a description without a line of code.

A server sends the bundle to every node, and Flower would run what is in it. This one names what
is installed at each side. An owner refuses every other bundle by its SHA-256.
"""

__all__ = ["BUNDLE_FILES", "CLIENT_APP"]

CLIENT_APP = "blindmerge_client.node:app"
"""The courier that a node of an owner loads from the owner's own installation."""

# The server's part is never loaded: `blindmerge server merge` is the ServerApp of its run.
_PYPROJECT = f"""\
[project]
name = "blindmerge"
version = "1.0.0"
description = "Names the installed apps of blindmerge; holds no code."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "blindmerge"

[tool.flwr.app.components]
serverapp = "blindmerge_server.flower_run:none"
clientapp = "{CLIENT_APP}"
"""

BUNDLE_FILES = {"pyproject.toml": _PYPROJECT.encode()}
"""What Flower's `build_fab_from_files` makes the bundle of."""
