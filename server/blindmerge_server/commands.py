"""The coordinator's commands: `blindmerge server ...`."""

import datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from blindmerge.secagg.secret import OsRandomness

__all__ = ["server"]

server = typer.Typer(
    name="server",
    help="Coordinate a federation: the server sees sums only.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

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
    """Make keys and a certificate in DIR, with commented settings. Overwrites nothing."""
    from blindmerge_server.setup import make_home

    now = datetime.datetime.now(datetime.UTC)
    home = make_home(folder, name, host, port, OsRandomness(), now)
    print(f"A coordinator's folder: {home.folder}")
    print("\nGive each owner, over a channel that both of you trust:")
    print(f"  the authority of your server   {home.authority_file}")
    print("  your address                  ", ", ".join(f"{each}:{port}" for each in host))
    print(f"  your public key, to pin as '{name}' in [coordinators] of policy.toml:")
    print(f"    {home.identity().public.hex()}")
    print("\nNext: blindmerge server add-owner DIR public-keys.json, for each owner.")


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


@server.command("roster")
def roster(folder: Folder) -> None:
    """Print the owners, their keys, and the hash that each of them pins."""
    from blindmerge_server.config import Home

    home = Home(folder)
    members = home.roster()
    for member in members.members:
        print(f"{member.name}\n  {member.public.hex()}")
    print(f"\n{len(members)} owner(s); every owner gets the file and pins its hash:")
    print(f"  {home.roster_file}\n  {members.sha256.hex()}")


@server.command("plan")
def plan(folder: Folder, job: JobFile) -> None:
    """Write the signed plan of a job, which owners can read and check beforehand."""
    from blindmerge_server.config import Home, JobSettings
    from blindmerge_server.planning import write_plan

    home = Home(folder)
    home.settings()
    signed = write_plan(home, JobSettings.read(job))
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
    print("\nOwners check it with: blindmerge client policy check DIR PLAN")


@server.command("run")
def run(folder: Folder) -> None:
    """Serve the federation until Ctrl-C: TLS, and only owners of the roster get in."""
    from blindmerge_server.config import Home
    from blindmerge_server.superlink import serve

    serve(Home(folder), lambda line: print(line, flush=True))


@server.command("merge")
def merge(folder: Folder, job: JobFile) -> None:
    """Run a job, or what is left of it, with the owners that are connected."""
    from rich.console import Console

    from blindmerge_server.config import Home, JobSettings
    from blindmerge_server.merging import run_merge
    from blindmerge_server.report.job_table import render_job

    home = Home(folder)
    home.settings()
    settings = JobSettings.read(job)
    report = run_merge(home, settings, lambda line: print(line, flush=True))
    render_job(report, home.jobs / settings.name, Console(highlight=False))


@server.command("jobs")
def jobs(folder: Folder) -> None:
    """Every plan, and how far its job is."""
    from blindmerge_server.config import Home
    from blindmerge_server.planning import read_plan

    home = Home(folder)
    home.settings()
    plans = sorted(home.plans.glob("*.plan"))
    if not plans:
        print("no plan yet: blindmerge server plan DIR JOB.toml")
    for file in plans:
        plan = read_plan(home, file.stem).plan
        at = home.jobs / plan.job
        state = "planned"
        if (at / "report.json").exists():
            state = f"done, in {at}"
        elif at.exists():
            state = "not finished: run `blindmerge server merge` again"
        print(f"{plan.job}  {plan.sha256[:12]}  {plan.method.name}  {state}")


@server.command("status")
def status(folder: Folder) -> None:
    """Whether the server answers, and which owners are connected."""
    from blindmerge_server.config import Home
    from blindmerge_server.flower_run import nodes_online

    home = Home(folder)
    online = set(nodes_online(home).values())
    print(f"the server answers at {home.settings().connect}:{home.settings().port}")
    for owner in home.owners():
        print(f"  {owner.name}  {'connected' if owner.name in online else 'not connected'}")
