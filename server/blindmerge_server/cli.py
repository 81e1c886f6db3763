"""The server's commands, and the simulation's."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from blindmerge_server.commands import server

__all__ = ["register", "simulate"]


def register(app: typer.Typer) -> None:
    """Adds the commands to `blindmerge`."""
    app.command()(simulate)
    app.add_typer(server)


def simulate(
    federation: Annotated[
        Path | None,
        typer.Argument(help="FEDERATION.toml; without it the embedded federation runs."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the merged model, the report and the plots.")
    ] = Path("out"),
    cache: Annotated[
        Path,
        typer.Option(
            help="Folder for what outlives a run: fetched material, fine-tuned models.",
            envvar="BLINDMERGE_CACHE",
        ),
    ] = Path("~/.cache/blindmerge"),
) -> None:
    """Simulate a whole federation on this machine and compare the merge methods.

    Every owner fine-tunes the base on its own texts, contributes its statistics and evaluates
    the merged model.
    """
    # Imported here: neither `blindmerge --help` nor a mistake in the file must wait for torch.
    from blindmerge_server.simulate.federation import default_federation, read_federation

    described = read_federation(federation or default_federation())
    from blindmerge_server.report.table import render
    from blindmerge_server.simulate.run import check_out, simulate
    from blindmerge_server.simulate.watch import Bars

    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    console = Console()
    check_out(out)
    with Bars(Console(stderr=True)) as bars:
        report = simulate(described, out, cache.expanduser(), bars)
    render(report, console, folder=out)
