"""What an owner's examples have cost in privacy: `blindmerge client ledger ...`."""

import re
import time
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.table import Table

from blindmerge.errors import ConfigInvalid, LedgerTampered
from blindmerge_client.arguments import Folder, show

if TYPE_CHECKING:
    from blindmerge_client.config import Home
    from blindmerge_client.ledger import Book, Entry

__all__ = ["ledger"]

ledger = typer.Typer(
    name="ledger",
    help="What the examples have cost in privacy.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Delta: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Report epsilon at this delta; the policy's if left out.", min=1e-300, max=0.5
    ),
]


@ledger.command("show")
def show_ledger(folder: Folder, delta: Delta = None) -> None:
    """Print every charge, what all come to, and what is left."""
    from blindmerge.privacy.accountant import room
    from blindmerge_client.config import Home, Policy

    home = Home(folder)
    policy = home.policy() if home.policy_file.exists() else Policy()
    for book in _books(home, folder):
        _print_book(book, policy.delta if delta is None else delta)
        left = room(book.spent, policy.max_epsilon, policy.delta)
        allowed = f"max_epsilon {policy.max_epsilon:g} at delta {policy.delta:g}"
        print(f"left:  one release of epsilon {left:.3g}, by {allowed} of the policy\n")


@ledger.command("verify")
def verify(
    folder: Folder,
    head: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="A head that you noted: is it part of a ledger here?"),
    ] = None,
) -> None:
    """Check every entry and every stored release by their hashes."""
    from blindmerge_client.config import Home

    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise ConfigInvalid("--head is not a SHA-256", hint="give the 64 hex digits that you noted")
    books = _books(Home(folder), folder)
    for book in books:
        count, examples = len(book.entries), book.entries[0].subject[:12]
        print(f"ledger of examples {examples}: {count} entries hold together")
    if head is None:
        print("Both files of a ledger together could be older copies: note the heads, and --head")
        return
    if not any(head == each.hex() for book in books for each in book.heads):
        raise LedgerTampered(
            "no ledger here knows the head that was noted",
            hint="somebody put back an older copy, or rewrote it: count the budget as spent",
        )
    print("The head that was noted is part of it.")


def _books(home: "Home", folder: object) -> "tuple[Book, ...]":
    names = sorted(path.name for path in home.ledgers.glob("*") if path.is_dir())
    if not names:
        raise ConfigInvalid(
            f"there is no ledger in '{folder}' yet",
            hint="jobs with noise need one: blindmerge client ledger open; masks charge nothing",
        )
    return tuple(home.ledger(name).verify(name) for name in names)


def _print_book(book: "Book", delta: float) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("time (UTC)")
    table.add_column("what")
    table.add_column("of", overflow="fold")
    table.add_column("epsilon alone", justify="right")
    for entry in book.entries:
        table.add_row(_minute(entry), entry.kind, _subject(entry), _alone(entry, delta))
    show(table)
    print(f"\nspent: epsilon {book.spent.epsilon(delta):.3g} at delta {delta:g}, all together")
    print(f"head:  {book.head.hex()}")


def _minute(entry: "Entry") -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.time))


def _subject(entry: "Entry") -> str:
    """A job without the whole hash of its plan; a data set by the beginning of its own."""
    name, colon, sha256 = entry.subject.partition(":")
    if colon:
        return f"{name} ({sha256[:8]})"
    return f"examples {name[:12]}" if entry.kind == "opened" else name


def _alone(entry: "Entry", delta: float) -> str:
    return f"{entry.cost.epsilon(delta):.3g}" if entry.kind == "charged" else ""
