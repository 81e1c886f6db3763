"""What masks cost: the embedded federation, merged with and without them.

    python tests/bench/masks.py [--cache DIR] [--out FILE]

One process plays four owners and a server. Every statistic is made once and added up twice, in
the open and under masks, so merged weights may differ by the rounding of the ring alone. Times
are CPU seconds of all owners together, which do not depend on what else the machine does.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.plan import Plan
from blindmerge_client.owner import Owner
from blindmerge_server.exchanges import Exchange, exchanges
from blindmerge_server.rounds import BlockSum, solve_block
from blindmerge_server.simulate.federation import default_federation, read_federation
from blindmerge_server.simulate.setting import Setting, read_setting
from blindmerge_server.sums import SecureSums

_HOUR_S = 3600


@dataclass(frozen=True)
class Cost:
    """Of one method.

    difference: largest |with - without| of a merged tensor, relative to its largest number.
    statistics_s, masks_s, server_s: CPU time of the owners' statistics, of all else they do
    under masks, and of the server from the first message to the sums.
    masked_bytes, open_bytes: what an owner sends.
    """

    method: str
    difference: float
    statistics_s: float
    masks_s: float
    server_s: float
    masked_bytes: int
    open_bytes: int


class Clock:
    """CPU seconds and bytes by what they were spent on."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Counts the time of the block."""
        began_s = time.process_time()
        yield
        self.spent[what] += time.process_time() - began_s


def owners_of(setting: Setting) -> list[Owner]:
    """The owners of the federation, fine-tuned."""
    return [
        Owner(p.name, p.base, p.fine_tuned(), p.examples(), p.folder, p.masks)
        for p in setting.pupils
    ]


def difference(one: Path, other: Path) -> float:
    """The largest relative difference of two checkpoints' tensors."""
    first, second = Checkpoint(one), Checkpoint(other)
    largest = 0.0
    for name in sorted(first.shapes):
        ours, theirs = first.read([name])[name], second.read([name])[name]
        apart = float(np.abs(ours - theirs).max())
        largest = max(largest, apart / float(np.abs(theirs).max()))
    return largest


def cost(method: str, setting: Setting, folder: Path) -> Cost:
    """Runs both."""
    plan, clock = setting.plans[method], Clock()
    if setting.roster is None:
        raise AssertionError("the embedded federation has masks")
    expires, layouts = round(time.time()) + _HOUR_S, setting.layouts[method]
    sums = SecureSums(plan, setting.roster, layouts, folder / "spool", expires)
    writers = {
        name: CheckpointWriter(folder / name, setting.base, plan.blocks)
        for name in ("masked", "open")
    }
    owners = owners_of(setting)
    for owner in owners:
        owner.session(plan)  # reads and checks models, with masks or without
    for exchange in exchanges(plan)[0]:
        added = None if exchange.block is None else BlockSum(plan, exchange.block)
        for owner in owners:
            _ask(owner, plan, sums, exchange, added, clock)
        with clock.on("server"):
            totals = sums.close(exchange)
            known = next(totals, None)
        while known is not None:
            solve_block(plan, known, setting.base, writers["masked"])
            with clock.on("server"):
                known = next(totals, None)
        if added is not None:
            solve_block(plan, added.total(), setting.base, writers["open"])
    for writer in writers.values():
        writer.finish()
    return Cost(
        method=method,
        difference=difference(folder / "masked", folder / "open"),
        statistics_s=clock.spent["statistics"],
        masks_s=clock.spent["masks"],
        server_s=clock.spent["server"],
        masked_bytes=round(clock.spent["masked bytes"] / len(owners)),
        open_bytes=round(clock.spent["open bytes"] / len(owners)),
    )


def _ask(
    owner: Owner,
    plan: Plan,
    sums: SecureSums,
    exchange: Exchange,
    added: BlockSum | None,
    clock: Clock,
) -> None:
    """One request to one owner; its statistic goes both ways."""
    session = owner.session(plan)
    with clock.on("server"):
        messages = sums.messages(exchange, owner.name)
    statistic = None
    if exchange.block is not None and added is not None:
        with clock.on("statistics"):
            statistic = session.contribute(exchange.block)
        added.add(owner.name, statistic.arrays)
        clock.spent["open bytes"] += sum(each.nbytes for each in statistic.arrays.values())
    with patch.object(session, "contribute", lambda _: statistic), clock.on("masks"):
        answer = owner.answer(plan, exchange.block, messages)
    clock.spent["masked bytes"] += sum(each.nbytes for each in answer.values())
    with clock.on("server"):
        sums.receive(exchange, owner.name, answer)


def table(costs: list[Cost]) -> str:
    """Markdown."""
    lines = [
        "| method | largest relative difference | owners' statistics, CPU s | their masks "
        "| the server's sums | MB sent, masked / open |",
        "|---|---|---|---|---|---|",
    ]
    for each in costs:
        sent = f"{each.masked_bytes / 1e6:.0f} / {each.open_bytes / 1e6:.0f}"
        lines.append(
            f"| {each.method} | {each.difference:.1e} | {each.statistics_s:.1f} "
            f"| {each.masks_s:.1f} | {each.server_s:.1f} | {sent} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="What masks cost.")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/blindmerge"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="masks-") as folder:
        federation = read_federation(default_federation())
        setting = read_setting(federation, options.cache.expanduser(), Path(folder), print)
        costs = [cost(method, setting, Path(folder) / method) for method in setting.plans]
    options.out.mkdir(parents=True, exist_ok=True)
    record = [asdict(each) for each in costs]
    (options.out / "masks.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "masks.md").write_text(table(costs) + "\n")
    print(table(costs))


if __name__ == "__main__":
    main()
