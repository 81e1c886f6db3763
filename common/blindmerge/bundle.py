"""The Flower app bundle of blindmerge: a description without a line of code.

Flower's servers send a bundle to every node, whose own software would run what is in it. Nodes of
blindmerge run nothing that is sent: the courier is part of the installation, as the coordinator's
side is. A node answers only runs with this bundle, by its SHA-256.
"""

__all__ = ["BUNDLE_FILES"]

# The format wants names of two apps; nobody loads them.
_PYPROJECT = """\
[project]
name = "blindmerge"
version = "1.0.0"
description = "Names the installed apps of blindmerge; holds no code."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "blindmerge"

[tool.flwr.app.components]
serverapp = "blindmerge_server.flower_run:none"
clientapp = "blindmerge_client.run:none"
"""

BUNDLE_FILES = {"pyproject.toml": _PYPROJECT.encode()}
"""What Flower's `build_fab_from_files` makes the bundle of."""
