"""An owner's commands: `blindmerge client ...`."""

import re
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from blindmerge.errors import ConfigInvalid
from blindmerge.log_file import log_to_file
from blindmerge.secagg.secret import OsRandomness
from blindmerge_client.arguments import Folder, JobName, Once, say, show
from blindmerge_client.ledger_commands import ledger
from blindmerge_client.train_commands import open_ledger, train

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
client.add_typer(ledger)
ledger.command("open")(open_ledger)

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_NEXT_STEP = {
    "asked": "waits for you: blindmerge client approve {0} {1}",
    "done": "the merged model is here: blindmerge client evaluate {0} {1}",
}
"""What a person can do about a job in this state; of folder and job."""


@client.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    name: Annotated[str, typer.Option(help="Your organisation's name: a-z, 0-9, '.', '_', '-'.")],
) -> None:
    """Make keys and commented settings. The policy allows nothing yet."""
    from blindmerge_client.setup import make_home

    home = make_home(folder, name, OsRandomness())
    print(f"An owner's folder: {home.folder}")
    print("\nGive the coordinator, over a channel that both of you trust:")
    print(f"  your public keys  {home.public_keys_file}")
    print("  and to compare by telephone or in person:")
    print(f"    {home.identity(name).public.hex()}")
    print("\nGet from it: ca.crt and roster, both into this folder, and its public key.")
    print(f"Then edit {home.client_file.name} and {home.policy_file.name}; their comments say how.")
    print(f"\nNext: blindmerge client policy check {folder} PLAN")
    print(f"      blindmerge client run {folder}")


@client.command("run")
def run(folder: Folder, once: Once = False) -> None:
    """Answer the jobs that the policy allows. Ctrl-C ends it."""
    from blindmerge_client.config import Home
    from blindmerge_client.run import run_client

    run_client(Home(folder), once, say)


@client.command("node")
def node(folder: Folder, once: Once = False) -> None:
    """The half of `run` with the network. The gateway runs as another user."""
    from blindmerge_client.config import Home
    from blindmerge_client.run import run_node

    run_node(Home(folder), once, say)


@client.command("gateway")
def gateway(
    folder: Folder,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", hidden=True, help="End when the input ends.")
    ] = False,
) -> None:
    """The half of `run` with data, model and keys. It has no network."""
    from blindmerge_client.config import Home
    from blindmerge_client.gateway import serve_gateway, stop_at_eof
    from blindmerge_client.guard import Guard
    from blindmerge_client.progress import Meters

    if until_eof:  # `client run` holds the other end
        stop_at_eof(sys.stdin.fileno())
    home = Home(folder)
    log_to_file(home.gateway_log_file)
    client = home.client()
    guard = Guard(home, say, Meters("reading your texts").watch)
    serve_gateway(guard, client.socket, client.socket_group)


@policy.command("check")
def check(
    folder: Folder,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="From the coordinator.")],
) -> None:
    """Compare a PLAN with the policy, line by line. Says what would leave this machine."""
    from blindmerge.errors import PolicyRefused
    from blindmerge_client.approval import read_question, read_statement
    from blindmerge_client.config import Home
    from blindmerge_client.policy import explain

    home = Home(folder)
    question = read_question(home, plan)
    lines = explain(home.policy(), question)
    table = Table(box=None, pad_edge=False)
    for column in ("", "rule", "the plan asks", "the policy allows"):
        table.add_column(column, overflow="fold", highlight=False)
    for line in lines:
        asked, allowed = (_HASH.sub(r"\1...", text) for text in (line.asked, line.allowed))
        table.add_row("NO" if line.refusal else "yes", line.key, asked, allowed)
    show(table)
    print("", *read_statement(home, question.plan, question.roster, question.earlier), sep="\n")
    print()
    refusals = [line.refusal for line in lines if line.refusal]
    if refusals:
        raise PolicyRefused(
            f"{len(refusals)} rule(s) refuse the plan",
            hint="\n  ".join(["to allow it,", *(refusal.hint for refusal in refusals)]),
        )
    print(f"The policy allows it. Next: blindmerge client run {folder}")


@client.command("jobs")
def jobs(folder: Folder) -> None:
    """Every job that was asked for, and what became of it."""
    from blindmerge_client.config import Home
    from blindmerge_client.jobs import Jobs

    found = Jobs(Home(folder).jobs).all()
    table = Table(box=None, pad_edge=False)
    for column in ("job", "hash", "method", "owners", "state", "since (UTC)"):
        table.add_column(column, justify="right" if column == "owners" else "left")
    for job in found:
        since = time.strftime("%Y-%m-%d %H:%M", time.gmtime(job.since))
        name, owners = job.plan.method.name, str(len(job.roster))
        table.add_row(job.plan.job, job.plan.sha256[:8], name, owners, job.state, since)
    if not found:
        print("no job yet; `blindmerge client run` waits for the coordinator's")
        return
    show(table)
    for job in found:
        if job.state in _NEXT_STEP:
            print(f"\n{job.plan.job}: {_NEXT_STEP[job.state].format(folder, job.plan.job)}")


@client.command("approve")
def approve(folder: Folder, job: JobName = None) -> None:
    """Let a job begin that waits. What will leave this machine is said first."""
    from blindmerge_client.approval import read_statement
    from blindmerge_client.config import Home
    from blindmerge_client.jobs import Jobs

    home = Home(folder)
    jobs = Jobs(home.jobs)
    found = jobs.find(job, "asked", "refused")
    earlier = jobs.earlier(found.plan, found.dataset)
    print("\n".join(read_statement(home, found.plan, found.roster, earlier)))
    if not typer.confirm(f"\nLet job '{found.plan.job}' begin?"):
        raise ConfigInvalid("nothing was approved", hint="`blindmerge client refuse` says no")
    jobs.move(found.plan, "approved")
    print(f"job '{found.plan.job}' is approved; it begins when the coordinator asks again")
    print(f"`blindmerge client run {folder}` must be running then")


@client.command("refuse")
def refuse(folder: Folder, job: JobName = None) -> None:
    """Say no to a job, also to one that runs. Nothing more is sent in it."""
    from blindmerge_client.config import Home
    from blindmerge_client.jobs import Jobs

    jobs = Jobs(Home(folder).jobs)
    found = jobs.find(job, "asked", "approved", "running")
    jobs.move(found.plan, "refused")
    print(f"job '{found.plan.job}' is refused")


@client.command("evaluate")
def evaluate(folder: Folder, job: JobName = None) -> None:
    """Compare the merged model with your own. It takes your validation data."""
    from blindmerge.tasks import METRICS
    from blindmerge_client.config import Home
    from blindmerge_client.jobs import Jobs
    from blindmerge_client.progress import Meters
    from blindmerge_client.verdict import compare

    home = Home(folder)
    found = Jobs(home.jobs).find(job, "done", "accepted", "kept")
    comparison = compare(home, found.plan, Meters("reading your texts").watch)
    table = Table(box=None, pad_edge=False)
    metrics = METRICS[found.plan.task]
    for column in ("model", *(m.name + (", %" if m.percent else "") for m in metrics)):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, scores in (("your own", comparison.own), ("merged", comparison.merged)):
        table.add_row(name, *(metric.shown(scores.metrics[metric.id]) for metric in metrics))
    show(table)
    print(f"\n{comparison.examples} validation examples\nmerged model: {comparison.folder}")
    print(f"\nTo use the merged model:   blindmerge client accept {folder}")
    print(f"To stay with your own:     blindmerge client keep {folder}")


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


client.command("train")(train)
