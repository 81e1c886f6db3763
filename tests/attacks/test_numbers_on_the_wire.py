"""Everything that passes between a server and its owners under masks tells nothing but sums."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from scipy.stats import chi2

from blindmerge.encoding import to_wire
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.messages import KINDS, Block, Limits, parse
from support.grids import (
    FIRST_NODE,
    MemoryGrid,
    Recorder,
    honest,
    messages_of,
    misbehaving,
    run_job,
)
from support.jobs import NAMES, Job, make_job, under_masks

OWNERS = NAMES[:3]

# Of bytes that are uniform, one run in 10^12 has a larger chi-squared.
UNIFORM = float(chi2.isf(1e-12, 255))


def unevenness(data: bytes) -> float:
    """Chi-squared of the counts of the 256 bytes."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2).sum() / expected)


class Watched:
    """A job of three owners, and all that was said in it."""

    def __init__(self, job: Job) -> None:
        self.job, self.road = job, Recorder()
        nodes = honest(job)
        nodes[FIRST_NODE] = misbehaving(nodes[FIRST_NODE], self._look, at=6)
        self.spool: list[tuple[int, bytes]] = []
        """Mode and content of each owner's file when the server has all blocks."""
        (proof,) = run_job(job, MemoryGrid(nodes, self.road)).record.proofs
        self.manifest: SumManifest = proof.transcript.manifest
        self.limits = Limits.of(self.manifest)

    def _look(self, _request: object, reply: Message) -> list[Message]:
        for file in sorted((self.job.folder / "spool").rglob("*.blocks")):
            self.spool.append((file.stat().st_mode & 0o777, file.read_bytes()))
        return [reply]

    def masked(self) -> dict[tuple[str, int], bytes]:
        """Every owner's blocks as they were sent."""
        found = {}
        for reply in self.road.replies:
            if reply.metadata.message_type == "train":
                for data in messages_of(reply):
                    message = parse(data, self.limits)
                    if isinstance(message, Block):
                        owner = OWNERS[reply.metadata.src_node_id - FIRST_NODE]
                        found[owner, message.index] = message.payload
        return found

    def plain(self) -> dict[tuple[str, int], bytes]:
        """The same without masks."""
        found = {}
        for number, owner in enumerate(OWNERS):
            session = self.job.session(number)
            for part, layout in enumerate(self.manifest.parts):
                statistic = session.contribute(part)
                for index, block in enumerate(self.manifest.blocks_of(part)):
                    found[owner, block] = to_wire(layout.encode(statistic, index), layout.bits)
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder: Path = tmp_path_factory.mktemp("job")
    return Watched(under_masks(make_job(folder, owners=3, rows_factor=0.0)))


def test_owners_send_messages_of_the_protocol_and_scores(watched: Watched) -> None:
    kinds = set()
    for reply in watched.road.replies:
        if reply.metadata.message_type == "evaluate":
            assert set(reply.content) == {"scores"}
            continue
        assert set(reply.content) == {"answer"}
        for array in reply.content.array_records["answer"].values():
            assert array.dtype == "uint8"
            kinds.add(parse(array.data, watched.limits).kind)
    assert kinds == {"advert", "deal", "block", "consent", "opening"}


def test_the_server_sends_messages_of_the_protocol_and_merged_tensors(watched: Watched) -> None:
    kinds = set()
    for request in watched.road.requests:
        assert set(request.content) == {"request", "merged"}
        asked = request.content.config_records["request"]
        assert asked.keys() == {"plan", "block", "messages"}
        said = asked["messages"]
        assert isinstance(said, list)
        for data in said:
            assert isinstance(data, bytes)
            kinds.add(parse(data, watched.limits).kind)
        if request.metadata.message_type == "train":
            assert not request.content.array_records["merged"]
    assert kinds == {"propose", "adverts", "deliveries", "survivors", "consents"}
    assert kinds < set(KINDS)


def test_masked_blocks_look_uniform(watched: Watched) -> None:
    masked, plain = watched.masked(), watched.plain()
    assert masked.keys() == plain.keys()
    assert unevenness(b"".join(masked.values())) < UNIFORM
    # The same test finds numbers that are not masked.
    assert unevenness(b"".join(plain.values())) > 100 * UNIFORM


def test_no_number_is_sent_as_it_is(watched: Watched) -> None:
    masked, plain = watched.masked(), watched.plain()
    for key, payload in masked.items():
        numbers, hidden = (np.frombuffer(data, "<u8") for data in (plain[key], payload))
        # Each number agrees by chance in one of 2^64 cases.
        assert not (numbers == hidden).any()


def test_differences_of_owners_are_masked_too(watched: Watched) -> None:
    """No two owners use the same masks."""
    masked, plain = (
        {
            owner: np.concatenate(
                [np.frombuffer(data[owner, b], "<u8") for b in range(watched.manifest.blocks)]
            )
            for owner in OWNERS
        }
        for data in (watched.masked(), watched.plain())
    )
    for owner, other in (("anna", "bert"), ("bert", "cleo"), ("anna", "cleo")):
        hidden, known = (data[owner] - data[other] for data in (masked, plain))
        assert not (hidden == known).any()
        assert unevenness(hidden.tobytes()) < UNIFORM


def test_the_sum_needs_the_owners_to_open_it(watched: Watched) -> None:
    """The masks of pairs cancel in the sum of all; each owner's own mask is still on it."""
    masked, plain = (
        np.sum(
            [
                np.concatenate(
                    [np.frombuffer(data[o, b], "<u8") for b in range(watched.manifest.blocks)]
                )
                for o in OWNERS
            ],
            axis=0,
        )
        for data in (watched.masked(), watched.plain())
    )
    assert not (masked == plain).any()
    assert unevenness(masked.tobytes()) < UNIFORM


def test_masked_blocks_on_disk_are_private_and_masked(watched: Watched) -> None:
    assert [mode for mode, _ in watched.spool] == [0o600] * 3
    assert unevenness(b"".join(data for _, data in watched.spool)) < UNIFORM
