"""Arguments and tables that an owner's commands have in common."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["Folder", "JobName", "Once", "say", "show"]

Folder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="The owner's folder.")]
JobName: TypeAlias = Annotated[
    str | None,
    typer.Argument(metavar="JOB", help="Its name, or how its hash begins; none if it is the only."),
]
Once: TypeAlias = Annotated[bool, typer.Option("--once", help="Leave after one job.")]
_WIDTH = 80


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def show(table: Table) -> None:
    """Prints a table, 80 columns wide."""
    Console(width=_WIDTH, highlight=False).print(table)
