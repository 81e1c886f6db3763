"""The command `blindmerge`: errors, exit codes, and where the commands are.

Each side registers its own commands; their heavy imports wait until a command runs.
"""

import os
import re
import signal
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import click
import typer
import typer.core
from rich.console import Console
from rich.table import Table

from blindmerge.adapter import write_adapter
from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import (
    BlindmergeError,
    ConfigInvalid,
    Interrupted,
    PeerInvalid,
    ResourceMissing,
)
from blindmerge.identity import verify_roster
from blindmerge.manifest import Group, Manifest
from blindmerge.secagg.transcript import Transcript, verify_transcript

__all__ = ["app", "main"]

# The sides that have commands: modules with a function `register(app)`. They are named, not
# imported, since this package must not depend on them.
_SIDES = ("blindmerge_server.cli", "blindmerge_client.cli")

# Set before torch, tokenizers, Ray or Flower are loaded. Nothing may wait for the internet, and
# two threads that spin for each other are slow on a busy machine.
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

_TRANSCRIPT_BYTES = 1 << 24
"""More than a transcript of the largest roster, 65,536 owners."""

_DROPPED = {
    "R0": "not in the sum, never took part (R0)",
    "R1": "not in the sum, gone before its keys were shared (R1)",
    "R2": "not in the sum, gone before all its masked numbers were there (R2)",
    "R3": "in the sum, but gone before it signed who is (R3)",
}

# Without it typer 0.20 escapes brackets for rich even where rich does not print them.
typer.core.HAS_RICH = False

app = typer.Typer(
    name="blindmerge",
    help="Merge fine-tuned models of organisations that may not pool their data. "
    "The server learns only sums.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"blindmerge {version('blindmerge')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Merge fine-tuned models of organisations that may not pool their data."""


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="Folder of a transformers checkpoint.")],
) -> None:
    """Print how each tensor of a MODEL would be merged."""
    checkpoint = Checkpoint(model)
    manifest = checkpoint.manifest
    console = Console(highlight=False)
    console.print(_rules(manifest))
    numbers = sum(_size(shape) for shape in manifest.shapes.values())
    console.print(
        f"{manifest.architecture}: {len(manifest.shapes)} tensors, {numbers:,} numbers, "
        f"{len(manifest.blocks)} phases\ncontent hash {checkpoint.sha256}"
    )


@app.command()
def adapter(
    base: Annotated[Path, typer.Argument(help="Folder of the checkpoint that all started from.")],
    merged: Annotated[Path, typer.Argument(help="Folder of the merged checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    rank: Annotated[int, typer.Option(min=1, help="Width of the factors.")] = 8,
) -> None:
    """Write a MERGED model as a LoRA adapter for its BASE, and say what is lost."""
    if out.exists():
        raise ConfigInvalid(f"'{out}' exists already", hint="give a new folder")
    report = write_adapter(Checkpoint(base), Checkpoint(merged), rank, out)
    worst = max(report.layers, key=lambda each: each.relative_error)
    print(f"adapter of rank {rank} for {len(report.layers)} layers: {out}")
    print(f"lost of the change: {100 * report.relative_error:.2g} % of its norm")
    print(f"lost at most in a layer: {100 * worst.relative_error:.2g} %, {worst.layer}")
    for name in report.lost:
        print(f"lost as a whole: {name}")


@app.command("verify-transcript")
def verify(
    file: Annotated[Path, typer.Argument(help="Transcript that came with a merged model.")],
    roster: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256",
            help="Hash of the roster, as your organisation pinned it: 64 hex digits. "
            "Without it nothing says that the signatures are those of your partners.",
        ),
    ] = None,
) -> None:
    """Check who was in a secure sum: the signatures in the transcript FILE."""
    if roster is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", roster):
        raise ConfigInvalid(
            "--roster is not a SHA-256", hint="give the 64 hex digits that your policy pins"
        )
    with file.open("rb") as stream:
        data = stream.read(_TRANSCRIPT_BYTES + 1)
    if len(data) > _TRANSCRIPT_BYTES:
        raise PeerInvalid(f"'{file}' is larger than any transcript: {_TRANSCRIPT_BYTES:,} bytes")
    proof = verify_transcript(data)
    if roster is not None:
        verify_roster(proof.roster, bytes.fromhex(roster))
    print("\n".join([*_described(proof), *_compared(roster)]))


def _described(proof: Transcript) -> list[str]:
    manifest, thresholds = proof.manifest, proof.manifest.thresholds
    lines = [
        f"sum of {len(proof.summed)} of {len(proof.roster)} owners, "
        f"signed by {len(proof.signers)} of them",
        f"threshold   {thresholds.quorum} of {thresholds.owners} owners; "
        f"safe while at most {thresholds.colluders} help the server",
        f"secrets     open with {thresholds.threshold} of {thresholds.holders} shares",
        f"job         {manifest.job}",
        f"phase       {manifest.phase + 1} of {manifest.phases}, attempt {manifest.attempt + 1}",
        f"manifest    {manifest.hash.hex()}",
        f"plan        {manifest.plan}",
        f"base model  {manifest.base}",
        f"roster      {manifest.roster}",
        "",
        "in the sum:",
        *(f"  {name}" for name in proof.summed),
    ]
    for step, names in proof.dropped.items():
        if names:
            lines += [f"{_DROPPED[step]}:", *(f"  {name}" for name in names)]
    return lines


def _compared(roster: str | None) -> list[str]:
    if roster is not None:
        return ["", "The signatures are valid, and the roster is the pinned one."]
    return [
        "",
        "WARNING: THE ROSTER WAS NOT COMPARED. Anybody can invent owners and sign.",
        "Give the hash that your organisation pinned: --roster SHA256",
    ]


def _rules(manifest: Manifest) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("rule")
    for block in manifest.blocks:
        # Names are shown without the block's own: whole ones do not fit into 80 columns.
        prefix = f"{block.name}."
        table.add_row(f"[bold]{block.name}[/]", "", "")
        for mean in block.means:
            name = mean.name.removeprefix(prefix)
            table.add_row(f"  {name}", _shape(mean.shape), "average")
        for group in block.groups:
            alike = [other for other in block.groups if _are_alike(group, other)]
            if alike[0] is not group:
                continue
            rule = f"Gram {group.width}, {group.rows}"
            for layer in group.layers:
                for name in layer.tensors:
                    shape = _shape(manifest.shapes[name])
                    table.add_row(f"  {name.removeprefix(prefix)}", shape, rule)
                    rule = "  same"
            if len(alike) > 1:
                table.add_row(f"  and {len(alike) - 1} more experts", "", "  one each")
    return table


def _are_alike(group: Group, other: Group) -> bool:
    """Whether they are one group, or two experts with layers of the same sizes."""
    if group.expert is None or other.expert is None:
        return group is other
    sizes = [[each.outputs for each in some.layers] for some in (group, other)]
    return (group.rows, group.width, sizes[0]) == (other.rows, other.width, sizes[1])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for width in shape:
        size *= width
    return size


def main() -> NoReturn:
    """The entry point: runs a command, explains an error, exits with its code."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for side in _SIDES:
        import_module(side).register(app)
    try:
        code = app(prog_name="blindmerge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_text:
        print(help_text.format_message(), file=sys.stderr)
        sys.exit(ConfigInvalid.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "blindmerge"
        _fail(ConfigInvalid(error.format_message(), hint=f"see `{command} --help`"))
    except click.Abort:
        _fail(Interrupted("stopped"))
    except BlindmergeError as error:
        _fail(error)
    except OSError as error:
        if error.filename is None:  # not about a file of the user's: a traceback tells more
            raise
        _fail(ResourceMissing(f"'{error.filename}': {error.strerror}"))
    if code == Interrupted.exit_code:  # typer returns it for a KeyboardInterrupt, in silence
        _fail(Interrupted("stopped"))
    sys.exit(code)


def _fail(error: BlindmergeError) -> NoReturn:
    print(f"blindmerge: error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"blindmerge: hint: {error.hint}", file=sys.stderr)
    sys.exit(error.exit_code)
