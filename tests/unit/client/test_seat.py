"""An owner in a secure sum: what it refuses, what it stores, and that it can be killed anywhere."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint, Tensors
from blindmerge.encoding import error_bound
from blindmerge.errors import BlindmergeError, PeerInvalid, PolicyRefused, ProtocolBroken
from blindmerge.identity import Identity, Roster
from blindmerge.secagg.manifest import SumManifest, Thresholds
from blindmerge.secagg.messages import Limits, Propose, Survivors, encode, parse
from blindmerge_server.exchanges import Kind, exchanges
from blindmerge_server.rounds import Total
from support.grids import honest_until, sums_of
from support.jobs import NAMES, Job, make_job, under_masks
from support.plans import layouts_of
from support.randomness import CounterRandomness

OWNERS = 3


@pytest.fixture(scope="module")
def base_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    return under_masks(make_job(folder, owners=OWNERS, texts=4, method="average"))


@pytest.fixture
def job(base_job: Job, tmp_path: Path) -> Job:
    return replace(base_job, folder=tmp_path)


def propose(job: Job, /, **changes: Any) -> bytes:
    """The first message of a job's first sum, with some of its manifest changed."""
    parts = layouts_of(job.plan)[0]
    manifest = job.plan.sum_manifest(0, parts, attempt=0, expires=int(time.time()) + 60)
    changed = SumManifest.model_validate(dict(manifest.model_dump()) | changes)
    return encode(Propose(changed.hash, changed.encoded), OWNERS)


def test_the_proposal_of_the_plan_is_answered(job: Job) -> None:
    (reply,) = job.owner(0).answer(job.plan, None, [propose(job)]).values()
    assert parse(reply.tobytes(), Limits(OWNERS, 10_000)).kind == "advert"


THRESHOLDS = Thresholds.for_owners(OWNERS).model_dump()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prg": "chacha20"}, PeerInvalid, "not the one of the plan"),
        ({"phases": 2}, PeerInvalid, "not the one of the plan"),
        ({"phases": 2, "phase": 1}, PeerInvalid, "was not in phase 0"),
        ({"noise": {"sigma": 0.0}}, PeerInvalid, "not the one of the plan"),
        ({"job": "job-2"}, PeerInvalid, "manifest of another job"),
        ({"attempt": 3}, PolicyRefused, "more than 3 attempts"),
        ({"plan": "0" * 64}, PolicyRefused, "another plan"),
        ({"base": "0" * 64}, PolicyRefused, "another base model"),
        ({"roster": "0" * 64}, PolicyRefused, "another roster"),
        ({"expires": 1}, PolicyRefused, "an expired manifest"),
    ],
)
def test_a_manifest_that_is_not_the_plans_is_refused(
    job: Job, changes: dict[str, Any], error: type[BlindmergeError], words: str
) -> None:
    with pytest.raises(error, match=words):
        job.owner(0).answer(job.plan, None, [propose(job, **changes)])
    # Nothing was stored, and the real one is still welcome.
    assert not list(job.folder.rglob("seat.state*"))
    assert len(job.owner(0).answer(job.plan, None, [propose(job)])) == 1


def test_a_request_that_no_plan_of_this_size_needs_is_not_read(job: Job) -> None:
    longest = job.plan.longest_manifest_bytes
    assert len(propose(job)) < longest < 20_000
    message = encode(Propose(bytes(32), bytes(longest + 2000)), OWNERS)
    with pytest.raises(ProtocolBroken, match="longer than the"):
        job.owner(0).answer(job.plan, None, [message])


def test_parts_that_are_not_the_plans_are_refused(job: Job) -> None:
    (parts,) = layouts_of(job.plan)
    narrow = under_masks(job, bits=48)
    for wrong in (parts[:-1], parts[::-1], [*parts, parts[0]], layouts_of(narrow.plan)[0]):
        message = propose(job, parts=tuple(part.model_dump() for part in wrong))
        with pytest.raises(PeerInvalid, match="parts of sum 0 are not"):
            job.owner(0).answer(job.plan, None, [message])


@pytest.mark.parametrize(
    ("demands", "words"),
    [
        ({"least_owners": 4}, "a sum of fewer than 4 owners"),
        ({"colluders": 2}, "fewer than 2 colluders"),
        (
            {
                "roster": Roster.of(
                    [Identity.generate(n, CounterRandomness(n)).member for n in NAMES]
                )
            },
            "another roster than the pinned one",
        ),
    ],
)
def test_what_an_owner_pins_the_plan_cannot_change(
    job: Job, demands: dict[str, Any], words: str
) -> None:
    with pytest.raises(PolicyRefused, match=words):
        job.owner(0, **demands).answer(job.plan, None, [propose(job)])


def test_whoever_is_not_in_the_roster_has_no_seat(job: Job) -> None:
    stranger = Identity.generate("anna", CounterRandomness("another key"))
    with pytest.raises(PeerInvalid, match="'anna' is not in the roster with its present key"):
        job.owner(0, identity=stranger).answer(job.plan, None, [])


def test_bytes_that_are_no_message_are_refused(job: Job) -> None:
    with pytest.raises(PeerInvalid):
        job.owner(0).answer(job.plan, None, [b"nonsense"])
    with pytest.raises(ProtocolBroken, match="belongs to no run"):
        job.owner(0).answer(job.plan, None, [encode(Survivors(bytes(32), (0, 1, 2)), OWNERS)])


@pytest.mark.parametrize("method", ["average", "progressive"])
def test_every_answer_can_come_from_a_new_process_and_come_again(
    method: str, tmp_path: Path
) -> None:
    """Each exchange has a new owner object that knows what is on disk, and asks it twice."""
    job = under_masks(make_job(tmp_path, owners=OWNERS, texts=4, method=method))
    sums, plan = sums_of(job), job.plan
    totals: dict[int, Total] = {}
    for exchange in exchanges(plan)[0]:
        for number, name in enumerate(NAMES[:OWNERS]):
            if exchange.kind is Kind.DELIVERY:
                continue
            messages = sums.messages(exchange, name)
            answers = []
            for _ in range(2):
                owner = job.owner(number)
                if exchange.deliver:
                    owner.receive(plan, _base_of(job, exchange.deliver))
                answers.append(owner.answer(plan, exchange.block, messages))
            first, second = ([a.tobytes() for a in answer.values()] for answer in answers)
            assert first == second
            assert first
            sums.receive(exchange, name, answers[0])
            (state,) = (job.folder / name).rglob("seat.state*")
            assert state.stat().st_mode & 0o777 == 0o600
        for total in sums.close(exchange):
            totals[total.block] = total
    assert totals.keys() == set(range(len(plan.blocks)))
    layouts = [part for parts in layouts_of(plan) for part in parts]
    if method == "progressive":
        return  # its totals depend on what was delivered
    for block, total in totals.items():
        assert total.owners == NAMES[:OWNERS]
        own = [job.session(number).contribute(block) for number in range(OWNERS)]
        for array in layouts[block].arrays:
            name, factor = array.name, 2.0 ** array.scale.exponents[0]
            exact = np.sum([each[name] for each in own], axis=0)
            bound = error_bound(exact, factor, OWNERS)
            # The sum of three in float64 is off by 2^-52 of numbers below 2.
            assert (np.abs(total.statistic[name] - exact) <= bound + 2.0**-51).all(), name


def _base_of(job: Job, blocks: tuple[int, ...]) -> Tensors:
    names = [name for block in blocks for name in job.plan.blocks[block].shapes]
    return Checkpoint(job.base).read(names)


@pytest.mark.parametrize("block", [None, 4, -2])
def test_masked_input_is_of_a_block_in_the_sum(job: Job, block: int | None) -> None:
    owners, messages = honest_until(job, Kind.MASKED_INPUT)
    before = next(job.folder.glob("anna/*/seat.state")).read_bytes()
    with pytest.raises(PeerInvalid, match="not in this sum"):
        owners[0].answer(job.plan, block, messages)
    assert next(job.folder.glob("anna/*/seat.state")).read_bytes() == before
    assert len(owners[0].answer(job.plan, 0, messages)) > 0


def test_the_survivors_are_signed_once(job: Job) -> None:
    """A server that names others the second time is refused, in a new process as well."""
    owners, (message,) = honest_until(job, Kind.CONSISTENCY)
    owners[0].answer(job.plan, None, [message])
    told = parse(message, Limits(OWNERS, 10_000))
    assert isinstance(told, Survivors)
    other = encode(Survivors(told.manifest_hash, (0, 1)), OWNERS)
    for owner in (owners[0], job.owner(0)):
        with pytest.raises(ProtocolBroken, match="two different messages"):
            owner.answer(job.plan, None, [other])
