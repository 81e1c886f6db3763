"""What masks cost: the embedded federation, merged with and without them.

    python tests/bench/masks.py [--bits N...] [--methods NAME...] [--cache DIR] [--out FILE]

One process plays four owners and a server. Every statistic is made once and added up twice, in
the open and under masks, so merged weights may differ by the rounding of the ring alone. A
progressive method goes on with what is merged under masks. Times are CPU seconds of all owners
together, which do not depend on what else the machine does. Accuracy is the mean over the
owners' test data.
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
from typing import get_args
from unittest.mock import patch

import numpy as np
from pydantic import TypeAdapter

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.encoding import Bits
from blindmerge.merge import METHODS, AnyMethod
from blindmerge.plan import Masks, Plan, check_width
from blindmerge.secagg.manifest import LEAST_OWNERS
from blindmerge_client.owner import Owner
from blindmerge_client.predict import predict_all
from blindmerge_client.scores import score
from blindmerge_server.exchanges import Exchange, exchanges
from blindmerge_server.rounds import BlockSum, solve_block
from blindmerge_server.simulate.bounds import cached_layouts
from blindmerge_server.simulate.federation import Federation, default_federation, read_federation
from blindmerge_server.simulate.setting import Setting, read_setting
from blindmerge_server.sums import SecureSums

_HOUR_S = 3600


@dataclass(frozen=True)
class Cost:
    """Of one method and width of the ring.

    difference: largest |with - without| of a merged tensor, relative to its largest number.
    apart: the norm of all differences, relative to that of all that merging changed.
    statistics_s, masks_s, server_s: CPU time of the owners' statistics, of all else they do
    under masks, and of the server from the first message to the sums.
    masked_bytes, open_bytes: what an owner sends.
    masked_accuracy, open_accuracy: in percent.
    """

    method: str
    bits: int
    difference: float
    apart: float
    statistics_s: float
    masks_s: float
    server_s: float
    masked_bytes: int
    open_bytes: int
    masked_accuracy: float
    open_accuracy: float


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


def difference(one: Path, other: Path, base: Checkpoint) -> tuple[float, float]:
    """The largest relative difference of two checkpoints' tensors, and that of all changes."""
    first, second = Checkpoint(one), Checkpoint(other)
    largest = off = changed = 0.0
    for name in sorted(first.shapes):
        ours, theirs = first.read([name])[name], second.read([name])[name]
        largest = max(largest, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        off += float(np.sum((ours - theirs) ** 2))
        changed += float(np.sum((theirs - base.read([name])[name]) ** 2))
    return largest, (off / changed) ** 0.5


def accuracy(checkpoint: Path, setting: Setting) -> float:
    """In percent, the mean over the owners."""
    tests = {name: each.test for name, each in setting.splits.items()}
    logits = predict_all(checkpoint, tests, setting.federation.training.max_length)
    job = setting.federation.job
    scores = [score(job.task, logits[name], test, job.labels) for name, test in tests.items()]
    return 100 * float(np.mean([each.metrics["accuracy"] for each in scores]))


def cost(method: str, bits: Bits, setting: Setting, folder: Path) -> Cost:
    """Runs both."""
    clock = Clock()
    if setting.roster is None:
        raise AssertionError("the embedded federation has masks")
    fields = {name: getattr(setting.plans[method], name) for name in Plan.model_fields}
    plan = Plan.model_validate(fields | {"masks": Masks.of(setting.roster, bits=bits)})
    layouts = cached_layouts(plan, setting.base.path, setting.cache / "layouts")
    expires = round(time.time()) + _HOUR_S
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
            if plan.method.progressive:
                merged = writers["masked"].read(known.block)
                for owner in owners:
                    owner.receive(plan, merged)
            with clock.on("server"):
                known = next(totals, None)
        if added is not None:
            solve_block(plan, added.total(), setting.base, writers["open"])
    for writer in writers.values():
        writer.finish()
    largest, apart = difference(folder / "masked", folder / "open", setting.base)
    return Cost(
        method=method,
        bits=bits,
        difference=largest,
        apart=apart,
        statistics_s=clock.spent["statistics"],
        masks_s=clock.spent["masks"],
        server_s=clock.spent["server"],
        masked_bytes=round(clock.spent["masked bytes"] / len(owners)),
        open_bytes=round(clock.spent["open bytes"] / len(owners)),
        masked_accuracy=accuracy(folder / "masked", setting),
        open_accuracy=accuracy(folder / "open", setting),
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
        "| method | bits | difference, largest of a weight / of all changes "
        "| accuracy, masked / open | owners' statistics, CPU s | their masks "
        "| the server's sums | MB sent, masked / open |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in costs:
        sent = f"{each.masked_bytes / 1e6:.0f} / {each.open_bytes / 1e6:.0f}"
        lines.append(
            f"| {each.method} | {each.bits} | {each.difference:.1e} / {each.apart:.1e} "
            f"| {each.masked_accuracy:.2f} / {each.open_accuracy:.2f} | {each.statistics_s:.1f} "
            f"| {each.masks_s:.1f} | {each.server_s:.1f} | {sent} |"
        )
    return "\n".join(lines)


def with_methods(names: list[str]) -> Federation:
    """The embedded federation with these methods, with its own options of those that it has."""
    federation = read_federation(default_federation())
    known: dict[str, AnyMethod] = {each.name: each for each in federation.job.methods.values()}
    default: TypeAdapter[AnyMethod] = TypeAdapter(AnyMethod)
    first, *others = (known.get(name, default.validate_python({"name": name})) for name in names)
    job = federation.job.model_copy(update={"method": first, "compare": tuple(others)})
    return federation.model_copy(update={"job": job})


def wide_enough(bits: Bits, method: AnyMethod) -> bool:
    """Whether plans of this width are allowed."""
    try:
        check_width(bits, method, LEAST_OWNERS)
    except ValueError as error:
        print(error)
        return False
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="What masks cost.")
    parser.add_argument("--bits", type=int, nargs="+", choices=get_args(Bits), default=[64, 48, 32])
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=["regmean", "average", "fisher", "progressive"],
    )
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/blindmerge"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="masks-") as folder:
        federation = with_methods(options.methods)
        setting = read_setting(federation, options.cache.expanduser(), Path(folder), print)
        costs = [
            cost(name, bits, setting, Path(folder) / f"{name}-{bits}")
            for name, plan in setting.plans.items()
            for bits in options.bits
            if wide_enough(bits, plan.method)
        ]
    options.out.mkdir(parents=True, exist_ok=True)
    record = [asdict(each) for each in costs]
    (options.out / "masks.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "masks.md").write_text(table(costs) + "\n")
    print(table(costs))


if __name__ == "__main__":
    main()
