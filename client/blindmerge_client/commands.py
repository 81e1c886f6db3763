"""An owner's commands: `blindmerge client ...`."""

import time
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from blindmerge.errors import ConfigInvalid
from blindmerge.secagg.secret import OsRandomness

__all__ = ["client"]

client = typer.Typer(
    name="client",
    help="Take part in a federation: data, model and keys stay on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
policy = typer.Typer(
    name="policy",
    help="What this organisation allows.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
client.add_typer(policy)

Folder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="The owner's folder.")]
JobName: TypeAlias = Annotated[
    str | None,
    typer.Argument(metavar="JOB", help="Its name, or how its hash begins; none if it is the only."),
]
Once: TypeAlias = Annotated[bool, typer.Option("--once", help="Leave after one job.")]
_WIDTH = 80


@client.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    name: Annotated[str, typer.Option(help="Your organisation's name: a-z, 0-9, '.', '_', '-'.")],
) -> None:
    """Make keys in DIR, with commented settings and a policy that allows nothing."""
    from blindmerge_client.setup import make_home

    home = make_home(folder, name, OsRandomness())
    print(f"An owner's folder: {home.folder}")
    print("\nGive the coordinator, over a channel that both of you trust:")
    print(f"  your public keys  {home.public_keys_file}")
    print(f"  to compare by telephone or in person: {home.identity(name).public.hex()}")
    print("\nGet from it: ca.crt and roster, both into this folder, and its public key.")
    print(f"Then edit {home.client_file.name} and {home.policy_file.name}; their comments say how.")
    print(f"\nNext: blindmerge client run {folder}")


@client.command("run")
def run(folder: Folder, once: Once = False) -> None:
    """Answer the coordinator's jobs, as far as the policy allows, until Ctrl-C."""
    from blindmerge_client.config import Home
    from blindmerge_client.run import run_client

    run_client(Home(folder), once, _say)


@client.command("node")
def node(folder: Folder, once: Once = False) -> None:
    """The half of `run` with the network and no data: the gateway runs as another user."""
    from blindmerge_client.config import Home
    from blindmerge_client.run import run_node

    run_node(Home(folder), once, _say)


@client.command("gateway")
def gateway(folder: Folder) -> None:
    """The half of `run` with data, model and keys, and no network."""
    from blindmerge_client.config import Home
    from blindmerge_client.gateway import serve_gateway
    from blindmerge_client.guard import Guard
    from blindmerge_client.run import log_to_file

    home = Home(folder)
    log_to_file(home)
    client = home.client()
    serve_gateway(Guard(home, _say), client.socket, client.socket_group)


@policy.command("check")
def check(
    folder: Folder,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="From the coordinator.")],
) -> None:
    """Compare a PLAN with the policy, line by line, and say what would leave this machine."""
    from blindmerge.errors import PolicyRefused
    from blindmerge_client.approval import read_question
    from blindmerge_client.config import Home
    from blindmerge_client.policy import explain
    from blindmerge_client.statement import statement

    home = Home(folder)
    question = read_question(home, plan)
    lines = explain(home.policy(), question)
    table = Table(box=None, pad_edge=False)
    for column in ("", "rule", "the plan asks", "the policy allows"):
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row("NO" if line.refusal else "yes", line.key, line.asked, line.allowed)
    console = Console(width=_WIDTH, highlight=False)
    console.print(table)
    publishes = home.client().test is not None
    console.print("", *statement(question.plan, question.roster, publishes), sep="\n")
    refusals = [line.refusal for line in lines if line.refusal]
    if refusals:
        raise PolicyRefused(
            f"{len(refusals)} rule(s) refuse the plan",
            hint="\n".join(refusal.hint for refusal in refusals),
        )


@client.command("jobs")
def jobs(folder: Folder) -> None:
    """Every job that was asked for, and what became of it."""
    from blindmerge_client.config import Home
    from blindmerge_client.jobs import Jobs

    table = Table(box=None, pad_edge=False)
    for column in ("job", "hash", "state", "since (UTC)"):
        table.add_column(column)
    for job in Jobs(Home(folder).jobs).all():
        since = time.strftime("%Y-%m-%d %H:%M", time.gmtime(job.since))
        table.add_row(job.plan.job, job.plan.sha256[:12], job.state, since)
    Console(width=_WIDTH, highlight=False).print(table if table.row_count else "no job yet")


@client.command("approve")
def approve(folder: Folder, job: JobName = None) -> None:
    """Say what will leave this machine in a job that waits, and let it begin."""
    from blindmerge_client.approval import read_statement
    from blindmerge_client.config import Home
    from blindmerge_client.jobs import Jobs

    home = Home(folder)
    jobs = Jobs(home.jobs)
    found = jobs.find(job, "asked", "refused")
    print("\n".join(read_statement(home, found.plan)))
    if not typer.confirm(f"\nLet job '{found.plan.job}' begin?"):
        raise ConfigInvalid("nothing was approved", hint="`blindmerge client refuse` says no")
    jobs.move(found.plan, "approved")
    print(f"job '{found.plan.job}' is approved; it begins when the coordinator asks again")


@client.command("refuse")
def refuse(folder: Folder, job: JobName = None) -> None:
    """Say no to a job, also to one that runs: nothing more is sent in it."""
    from blindmerge_client.config import Home
    from blindmerge_client.jobs import Jobs

    jobs = Jobs(Home(folder).jobs)
    found = jobs.find(job, "asked", "approved", "running")
    jobs.move(found.plan, "refused")
    print(f"job '{found.plan.job}' is refused")


@client.command("evaluate")
def evaluate(folder: Folder, job: JobName = None) -> None:
    """Compare the merged model of a job with your own, on your validation data."""
    from blindmerge.tasks import METRICS
    from blindmerge_client.config import Home
    from blindmerge_client.jobs import Jobs
    from blindmerge_client.verdict import compare

    home = Home(folder)
    found = Jobs(home.jobs).find(job, "done", "accepted", "kept")
    comparison = compare(home, found.plan)
    table = Table(box=None, pad_edge=False)
    metrics = METRICS[found.plan.task]
    for column in ("model", *(metric.name for metric in metrics)):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, scores in (("your own", comparison.own), ("merged", comparison.merged)):
        table.add_row(name, *(metric.shown(scores.metrics[metric.id]) for metric in metrics))
    console = Console(width=_WIDTH, highlight=False)
    console.print(table)
    console.print(f"\n{comparison.examples} validation examples\nmerged model: {comparison.folder}")
    console.print(f"Then: blindmerge client accept {folder}, or keep {folder} for your own model")


@client.command("accept")
def accept(folder: Folder, job: JobName = None) -> None:
    """Take the merged model: `current` in DIR points to it."""
    from blindmerge_client.config import Home
    from blindmerge_client.verdict import settle

    print(f"{settle(Home(folder), job, 'accepted')} is the current model")


@client.command("keep")
def keep(folder: Folder, job: JobName = None) -> None:
    """Stay with your own model: `current` in DIR points to it."""
    from blindmerge_client.config import Home
    from blindmerge_client.verdict import settle

    print(f"{settle(Home(folder), job, 'kept')} is the current model")


def _say(line: str) -> None:
    print(line, flush=True)
