"""Owners behind their guards, in this process: a job of `Deployment` without a network.

federation = Deployment(tmp_path)
guards = {name: Guard(home) for name, home in federation.owners.items()}
merge = run_guards(federation, guards, federation.signed())
"""

import time
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord

from blindmerge.checkpoint import Checkpoint
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.app import OwnerLike, courier
from blindmerge_server.exchanges import Kind, exchanges
from blindmerge_server.strategy import Merge
from blindmerge_server.sums import SecureSums
from support.deployment import Deployment
from support.grids import FIRST_NODE, Impatient, MemoryGrid, Node, context_of
from support.plans import layouts_of

__all__ = ["messages_before", "run_guards"]

Guards = Mapping[str, OwnerLike[SignedPlan]]


def run_guards(federation: Deployment, guards: Guards, signed: SignedPlan) -> Merge:
    """The job, to its end; `merged` in the federation's folder is what the server wrote."""
    names = {FIRST_NODE + number: name for number, name in enumerate(guards)}
    strategy = Merge(
        signed.plan,
        Checkpoint(federation.base),
        federation.folder / "merged",
        names,
        _sums(federation, signed),
        announced=signed.encode(),
    )
    nodes = {node: _node(guards[name]) for node, name in names.items()}
    grid: Any = Impatient(MemoryGrid(nodes), lambda: None)
    strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds, timeout=1000.0)
    return strategy


def messages_before(
    federation: Deployment, guards: Guards, signed: SignedPlan, kind: Kind
) -> tuple[int | None, tuple[bytes, ...]]:
    """Block and messages that the first of the owners is sent in the first exchange of a kind.

    All exchanges before have taken place.
    """
    sums = _sums(federation, signed)
    for exchange in exchanges(signed.plan)[0]:
        if exchange.kind is kind:
            return exchange.block, sums.messages(exchange, next(iter(guards)))
        for name, guard in guards.items():
            messages = sums.messages(exchange, name)
            sums.receive(exchange, name, guard.answer(signed, exchange.block, messages))
        list(sums.close(exchange))
    raise AssertionError("there is no such exchange")


def _sums(federation: Deployment, signed: SignedPlan) -> SecureSums:
    spool, expires = federation.folder / "spool", int(time.time()) + 3600
    roster = federation.server.roster()
    return SecureSums(signed.plan, roster, layouts_of(signed.plan), spool, expires)


def _node(owner: OwnerLike[SignedPlan]) -> Node:
    app = courier(lambda _context: owner, SignedPlan.decode)
    return lambda request: [app(request, context_of(request.metadata.dst_node_id))]
