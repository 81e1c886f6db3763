"""The client's commands, for `blindmerge`."""

import typer

from blindmerge_client.commands import client

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the commands to `blindmerge`."""
    app.add_typer(client)
