"""The coordinator's commands: `blindmerge server ...`."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from blindmerge.errors import Interrupted
from blindmerge.secagg.secret import OsRandomness

if TYPE_CHECKING:
    from blindmerge_server.config import Home

__all__ = ["server"]

server = typer.Typer(
    name="server",
    help="Coordinate a federation: the server sees sums only.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_WIDTH = 80
Folder: TypeAlias = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
JobFile: TypeAlias = Annotated[Path, typer.Argument(help="JOB.toml; `server init` wrote one.")]


@server.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    host: Annotated[
        list[str],
        typer.Option(help="Name or IP address that owners connect to; repeat it for more."),
    ],
    name: Annotated[
        str, typer.Option(help="Your name, as owners will pin it: a-z, 0-9, '.', '_', '-'.")
    ] = "coordinator",
    port: Annotated[int, typer.Option(help="TCP port to listen on.", min=1, max=65535)] = 9092,
) -> None:
    """Make keys, a certificate and commented settings. Overwrites nothing."""
    from blindmerge_server.setup import make_home

    now = datetime.datetime.now(datetime.UTC)
    home = make_home(folder, name, host, port, OsRandomness(), now)
    print(f"A coordinator's folder: {home.folder}")
    print("\nGive each owner, over a channel that both of you trust:")
    print(f"  the authority of your server   {home.authority_file}")
    print("  your address                  ", ", ".join(f"{each}:{port}" for each in host))
    print(f"  your public key, to pin as '{name}' in [coordinators] of policy.toml:")
    print(f"    {home.identity().public.hex()}")
    print(f"\nNext: blindmerge server add-owner {folder} public-keys.json, for each owner.")


@server.command("add-owner")
def add_owner(
    folder: Folder,
    keys: Annotated[Path, typer.Argument(help="The owner's public-keys.json.")],
) -> None:
    """Add an owner to the roster and let its node in."""
    from blindmerge_server.config import Home, OwnerKeys

    home = Home(folder)
    home.settings()
    added = OwnerKeys.read(keys)
    members = home.add(added)
    print(f"'{added.name}' is in the roster, which has {len(members)} owner(s) now.")
    print("Compare its public key with the owner, by telephone or in person:")
    print(f"  {added.identity}")
    print("A server that runs lets its node in within seconds.")
    print(f"\nWhen all are there: blindmerge server roster {folder}")


@server.command("remove-owner")
def remove_owner(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="As it stands in the roster.")],
) -> None:
    """Take an owner off the roster and bar its node. Jobs that go on need the old roster."""
    from blindmerge_server.config import Home

    home = Home(folder)
    home.settings()
    left = home.remove(name)
    print(f"'{name}' is not in the roster any more, which has {left} owner(s) now.")
    print("A server that runs bars its node within seconds; all others pin the new roster.")


@server.command("roster")
def roster(folder: Folder) -> None:
    """Print the owners, their keys, and the hash that all pin."""
    from blindmerge_server.config import Home

    home = Home(folder)
    home.settings()
    members = home.roster()
    for member in members.members:
        print(f"{member.name}\n  {member.public.hex()}")
    print(f"\n{len(members)} owner(s); every owner gets the file and pins its hash:")
    print(f"  {home.roster_file}\n  {members.sha256.hex()}")


@server.command("renew")
def renew(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(help="In place of the names and addresses in the old one; repeat for more."),
    ] = None,
) -> None:
    """Renew the server's certificate. Owners need do nothing.

    It is signed by the authority that they trust; a server that runs takes it within seconds.
    """
    from blindmerge_server.certificates import ends
    from blindmerge_server.config import Home

    home = Home(folder)
    home.settings()
    home.renew(host or (), datetime.datetime.now(datetime.UTC))
    print(f"{home.certificate_file}")
    print(f"ends on {ends(home.certificate_file.read_bytes()):%Y-%m-%d}")
    print("A server that runs takes it within seconds; owners need do nothing.")


@server.command("plan")
def plan(folder: Folder, job: JobFile) -> None:
    """Write the signed plan of a job. Owners can check it beforehand."""
    from blindmerge.privacy.wording import guarantee
    from blindmerge_server.config import Home, JobSettings
    from blindmerge_server.planning import noise_warning, write_plan

    home, settings = Home(folder), JobSettings.read(job)
    home.settings()
    signed = write_plan(home, settings)
    masks = signed.plan.masks
    if masks == "off":
        raise AssertionError("plans of a coordinator have masks")
    thresholds = masks.thresholds
    print(f"plan     {home.plans / signed.plan.job}.plan")
    print(f"hash     {signed.plan.sha256}")
    print(f"base     {signed.plan.base}")
    print(f"method   {signed.plan.method.name}")
    print(f"owners   {thresholds.owners}, of whom {thresholds.quorum} must stay to the end")
    print(f"safe     while at most {thresholds.colluders} owner(s) help the server")
    print(f"\n{guarantee(signed.plan.noise)}")
    if warning := noise_warning(signed.plan, settings):
        print(f"\nWARNING: {warning}")
    print("\nOwners check it with: blindmerge client policy check DIR PLAN")


@server.command("run")
def run(folder: Folder) -> None:
    """Serve the federation, over TLS. Only owners get in; Ctrl-C ends it."""
    from blindmerge_server.config import Home
    from blindmerge_server.superlink import serve

    serve(Home(folder), lambda line: print(line, flush=True))


@server.command("merge")
def merge(folder: Folder, job: JobFile) -> None:
    """Run a job, or what is left of it."""
    from blindmerge_server.config import Home, JobSettings
    from blindmerge_server.merging import run_merge
    from blindmerge_server.report.job_table import render_job

    home = Home(folder)
    home.settings()
    settings = JobSettings.read(job)
    try:
        report = run_merge(home, settings, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        hint = "run the same command again: the job goes on where it was"
        raise Interrupted("stopped", hint=hint) from None
    render_job(report, home.jobs / settings.name, Console(highlight=False))


@server.command("jobs")
def jobs(folder: Folder) -> None:
    """Every plan, and how far its job is."""
    from blindmerge_server.config import Home

    home = Home(folder)
    home.settings()
    _show_jobs(home)


@server.command("status")
def status(folder: Folder) -> None:
    """Show the server, who is connected, and how far jobs are."""
    from blindmerge_server.config import Home
    from blindmerge_server.overview import owner_lines

    home = Home(folder)
    settings, lines = home.settings(), owner_lines(home)
    print(f"the server answers at {settings.connect}:{settings.port}")
    if wrong := home.trouble(datetime.datetime.now(datetime.UTC)):
        print(f"WARNING: {wrong}")
    print()
    table = _table("owner", "times in UTC")
    for line in lines:
        table.add_row(line.name, line.state)
    _show(table)
    print()
    _show_jobs(home)


def _show_jobs(home: "Home") -> None:
    from blindmerge_server.overview import job_lines

    lines = job_lines(home)
    if not lines:
        print(f"no plan yet: blindmerge server plan {home.folder} JOB.toml")
        return
    table = _table("job", "hash", "method", "state")
    for line in lines:
        table.add_row(line.plan.job, line.plan.sha256[:8], line.plan.method.name, line.state)
    _show(table)
    for line in lines:
        if line.folder is not None:
            print(f"\n{line.plan.job}: {line.folder}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(table: Table) -> None:
    Console(width=_WIDTH, highlight=False).print(table)
