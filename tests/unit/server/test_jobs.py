"""Jobs whose server is killed: started again on the folder, they end as if nothing had been."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message

from blindmerge.checkpoint import Checkpoint, CheckpointWriter
from blindmerge.encoding import Layout, uniform
from blindmerge.errors import JobAborted
from blindmerge_server.jobs import JobFolder
from blindmerge_server.spool import Receipt, Spool
from blindmerge_server.strategy import Merge
from blindmerge_server.sums import SumsState
from support.grids import (
    FIRST_NODE,
    Impatient,
    MemoryGrid,
    Node,
    honest,
    is_silent,
    merge_of,
    misbehaving,
    refuses,
)
from support.jobs import NAMES, Job, make_job, under_masks, with_plan

NEVER = 2**40  # Unix time in seconds
BERT = FIRST_NODE + 1


class Killed(BaseException):
    """The server is no more. Not an Exception: nobody handles a SIGKILL."""


class Reaper:
    """Kills the server once before and once after each of its writes."""

    def __init__(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        self.killed: Counter[str] = Counter()
        self.acknowledged: set[tuple[str, int, int]] = set()
        self._seen: set[tuple[object, ...]] = set()
        out = job.folder / "out"

        def of_server(writer: CheckpointWriter, *args: Any) -> tuple[object, ...] | None:
            return args[:1] if writer.path == out else None  # owners write too, and live on

        self._arm(monkeypatch, Spool, "write", lambda spool, seat, *_: (spool._folder, seat))
        self._arm(
            monkeypatch, Spool, "acknowledge", lambda spool, r: (spool._folder, r.seat, r.part)
        )
        self._arm(monkeypatch, Spool, "remove", lambda spool: (spool._folder,))
        self._arm(monkeypatch, CheckpointWriter, "write", of_server)
        self._arm(monkeypatch, CheckpointWriter, "finish", of_server)
        self._arm(monkeypatch, JobFolder, "_save", _exchange_of)

    def _arm(
        self,
        monkeypatch: pytest.MonkeyPatch,
        kind: type,
        name: str,
        key_of: Callable[..., tuple[object, ...] | None],
    ) -> None:
        real = getattr(kind, name)

        def deadly(owner: Any, *args: Any) -> Any:
            key = key_of(owner, *args)
            if key is None:
                return real(owner, *args)
            self._die_once("before", kind.__name__, name, *key)
            result = real(owner, *args)
            if args and isinstance(args[0], Receipt):
                phase = owner._manifest.phase
                self.acknowledged.add((NAMES[args[0].seat], phase, args[0].part))
            self._die_once("after", kind.__name__, name, *key)
            return result

        monkeypatch.setattr(kind, name, deadly)

    def _die_once(self, *key: object) -> None:
        if key not in self._seen:
            self._seen.add(key)
            self.killed[f"{key[1]}.{key[2]}"] += 1
            raise Killed(*key)


def _exchange_of(_: JobFolder, sums: SumsState | None) -> tuple[object, ...]:
    return (None,) if sums is None else (sums.closed, len(sums.proofs))


def layouts_of(job: Job) -> list[list[Layout]]:
    """The same public bound 2^12 for all numbers."""
    plan = job.plan
    assert plan.masks != "off"
    owners, bits = plan.masks.thresholds.owners, plan.masks.bits
    return [
        [
            uniform(
                plan.method.schema_of(plan.blocks[block]),
                12,
                owners=owners,
                bits=bits,
                block_elements=1000,
            )
            for block in blocks
        ]
        for blocks in plan.phases
    ]


def begin(job: Job) -> Merge:
    """The server's process: all that it knows comes from the folder."""
    folder = JobFolder(job.folder / "job", job.plan, NEVER)
    return merge_of(job, folder.sums(job.roster, layouts_of(job)), record=folder.record)


def live(job: Job, nodes: dict[int, Node]) -> Merge:
    """From the start of a server's process to its end."""
    strategy = begin(job)
    grid: Any = Impatient(MemoryGrid(nodes), lambda: None)
    strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds, timeout=1000.0)
    return strategy


def until_it_ends(job: Job, nodes: dict[int, Node]) -> Merge:
    for _ in range(1000):
        try:
            return live(job, nodes)
        except Killed:
            continue
    raise AssertionError("the job gets nowhere")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return under_masks(make_job(tmp_path, owners=3, method="average"))


def undisturbed(job: Job) -> Merge:
    """The same job, whose server is not killed."""
    (job.folder / "undisturbed").mkdir()
    calm = replace(job, folder=job.folder / "undisturbed")
    return live(calm, honest(calm))


@pytest.mark.parametrize("method", ["regmean", "progressive"])
def test_killed_at_every_write_a_job_ends_with_the_same_model(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindmerge_server.exchanges._DELIVERY_BYTES", 1)
    # A killed process leaves to the system what it wrote; fsync is for power failures, and slow.
    monkeypatch.setattr("os.fsync", lambda _: None)
    job = under_masks(make_job(tmp_path, owners=3, method=method, rows_factor=0.0))
    expected = undisturbed(job).record
    with monkeypatch.context() as patches:
        reaper = Reaper(job, patches)
        asked: list[tuple[str, int, bool]] = []
        nodes = {n: listening(node, reaper, job, asked) for n, node in honest(job).items()}
        record = until_it_ends(job, nodes).record
    assert (
        Checkpoint(job.folder / "out").sha256
        == Checkpoint(job.folder / "undisturbed" / "out").sha256
    )
    # It died before and after each write of each kind.
    sums, blocks = len(job.plan.phases), len(job.plan.blocks)
    assert reaper.killed["Spool.acknowledge"] == 2 * 3 * blocks
    assert reaper.killed["Spool.write"] == 2 * 3 * sums
    assert reaper.killed["Spool.remove"] == 2 * sums
    assert reaper.killed["CheckpointWriter.write"] == 2 * blocks
    assert reaper.killed["CheckpointWriter.finish"] == 2
    assert reaper.killed["JobFolder._save"] > 2 * len(expected.seconds)
    # What was complete was not asked for again.
    assert len(asked) > 3 * blocks
    assert not [each for each in asked if each[2]]
    assert record.owners == expected.owners
    assert record.layers == expected.layers
    assert record.sent_bytes == expected.sent_bytes
    assert record.scores == expected.scores
    assert record.seconds.keys() == expected.seconds.keys()
    assert record.dropped == {}
    assert [p.transcript.sets.u3 for p in record.proofs] == [(0, 1, 2)] * sums
    assert [p.openers for p in record.proofs] == [NAMES[:3]] * sums


def listening(node: Node, reaper: Reaper, job: Job, asked: list[tuple[str, int, bool]]) -> Node:
    """The node; notes which blocks it is asked for, and whether the server had them already."""

    def answer(request: Message) -> Sequence[Message]:
        name = NAMES[request.metadata.dst_node_id - FIRST_NODE]
        block = request.content.config_records["request"]["block"]
        assert isinstance(block, int)
        for phase, blocks in enumerate(job.plan.phases):
            if block in blocks:
                known = (name, phase, blocks.index(block)) in reaper.acknowledged
                asked.append((name, block, known))
        return node(request)

    return answer


def killing(monkeypatch: pytest.MonkeyPatch, closed: int) -> None:
    """The server dies as soon as so many exchanges are closed."""
    real = JobFolder._save

    def save(folder: JobFolder, sums: SumsState | None) -> None:
        real(folder, sums)
        if sums is not None and sums.closed == closed:
            raise Killed

    monkeypatch.setattr(JobFolder, "_save", save)


def test_who_dropped_out_stays_out(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = under_masks(make_job(job.folder / "four", owners=4, method="average"))
    nodes = honest(job)
    refused = nodes | {BERT: misbehaving(nodes[BERT], refuses, at=2)}
    with monkeypatch.context() as patches:
        killing(patches, closed=4)
        with pytest.raises(Killed):
            live(job, refused)
    asked: list[int] = []

    def willing(request: Message) -> Sequence[Message]:
        asked.append(request.metadata.dst_node_id)
        return nodes[BERT](request)

    record = live(job, nodes | {BERT: willing}).record
    assert asked == []
    assert record.dropped["bert"].reason == "PolicyRefused: see the owner's log"
    assert set(record.owners.values()) == {("anna", "cleo", "dora")}


def test_when_the_masks_are_open_no_owner_is_needed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed(job)
    exchanges = len(begin(replace(job, folder=job.folder / "undisturbed")).plan.blocks) + 4
    with monkeypatch.context() as patches:
        killing(patches, closed=exchanges)
        with pytest.raises(Killed):
            live(job, honest(job))
    assert not (job.folder / "out").exists()
    silent: dict[int, Node] = {
        node: misbehaving(each, is_silent, at=0, kind="evaluate")
        for node, each in honest(job).items()
    }
    record = live(job, silent).record
    assert record.scores == {}
    assert (
        Checkpoint(job.folder / "out").sha256
        == Checkpoint(job.folder / "undisturbed" / "out").sha256
    )


def test_secrets_are_private_and_go_with_the_sum(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patches:
        killing(patches, closed=len(job.plan.blocks) + 4)
        with pytest.raises(Killed):
            live(job, honest(job))
    folder = job.folder / "job"
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    live(job, honest(job))
    assert sorted(path.name for path in folder.iterdir()) == ["blocks", "state"]
    assert list((folder / "blocks").iterdir()) == []
    kept = JobFolder(folder, job.plan, NEVER)._kept
    assert kept is not None
    assert (kept.now, kept.following) == (b"", b"")


def test_a_job_that_has_ended_asks_for_scores_only(job: Job) -> None:
    live(job, honest(job))
    kinds: list[str] = []

    def heard(node: Node) -> Node:
        def answer(request: Message) -> Sequence[Message]:
            kinds.append(request.metadata.message_type)
            return node(request)

        return answer

    again = live(job, {n: heard(node) for n, node in honest(job).items()})
    assert kinds == ["evaluate"] * 3
    assert again.record.scores.keys() == set(NAMES[:3])


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_damaged_state_ends_with_a_clear_error(
    damage: bytes | None, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patches:
        killing(patches, closed=3)
        with pytest.raises(Killed):
            live(job, honest(job))
    state = job.folder / "job" / "state"
    data = state.read_bytes()
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    state.write_bytes(changed if damage is None else damage)
    with pytest.raises(JobAborted, match=r"the state of job .job-1. in .* is damaged") as raised:
        begin(job)
    assert "new name" in raised.value.hint


def test_a_damaged_receipt_ends_with_a_clear_error(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patches:
        killing(patches, closed=3)
        with pytest.raises(Killed):
            live(job, honest(job))
    (receipt, *_) = sorted((job.folder / "job" / "blocks").rglob("*.receipt"))
    receipt.write_bytes(receipt.read_bytes()[:-1])
    with pytest.raises(JobAborted, match="is damaged"):
        begin(job)


def test_the_folder_of_another_job_is_refused(job: Job) -> None:
    begin(job)
    other = with_plan(job, examples=99)
    with pytest.raises(JobAborted, match="another plan") as raised:
        begin(other)
    assert "new name" in raised.value.hint


def test_other_bounds_are_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public exponents are computed; another machine's could differ."""
    with monkeypatch.context() as patches:
        killing(patches, closed=1)
        with pytest.raises(Killed):
            live(job, honest(job))
    folder = JobFolder(job.folder / "job", job.plan, NEVER)
    (parts,) = layouts_of(job)
    other = [uniform(part.shapes, 13, owners=3, bits=64, block_elements=1000) for part in parts]
    with pytest.raises(JobAborted, match="damaged"):
        folder.sums(job.roster, [other])
