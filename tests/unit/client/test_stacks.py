"""An encoder and a decoder block by block: whatever is lost in between, statistics are the same."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.statistic import Statistic
from support.jobs import Job, make_job

FIRST_OF_DECODER = "decoder.block.0"


def t5(folder: Path) -> Job:
    return make_job(folder, "t5", owners=1, texts=6, task="seq2seq", rows_factor=0.0)


def same(some: Statistic, other: Statistic) -> bool:
    return all(np.array_equal(some[name], other[name]) for name in some.schema)


def boundaries(job: Job) -> list[str]:
    return sorted(path.name for path in (job.folder / "session-0" / "states").glob("hidden-*"))


def test_a_decoder_is_computed_from_its_own_states_and_the_encoders_last(tmp_path: Path) -> None:
    job = t5(tmp_path)
    session = job.session(0)
    kept = {}
    for number, block in enumerate(job.plan.blocks):
        session.contribute(number)
        kept[block.name] = boundaries(job)
    assert kept["encoder.block.1"] == ["hidden-0", "hidden-1"]
    assert kept["decoder.block.0"] == ["hidden-1", "hidden-2"]
    # Layer 1 is the encoder's last: all of the decoder looks at it.
    assert kept["decoder.block.1"] == ["hidden-1", "hidden-2", "hidden-3"]


@pytest.mark.parametrize("lost", ["hidden-1", "hidden-2", "hidden-*"])
def test_states_that_are_lost_are_computed_again(lost: str, tmp_path: Path) -> None:
    job = t5(tmp_path)
    steady = t5(tmp_path / "steady").session(0)
    for number in range(len(job.plan.blocks)):
        expected = steady.contribute(number)
        session = job.session(0)
        assert same(session.contribute(number), expected)
        for path in (job.folder / "session-0" / "states").glob(lost):
            shutil.rmtree(path)
        assert same(job.session(0).contribute(number), expected)


def test_blocks_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    job = t5(tmp_path)
    steady, session = t5(tmp_path / "steady").session(0), job.session(0)
    numbers = range(len(job.plan.blocks))
    expected = {number: steady.contribute(number) for number in numbers}
    for number in (*reversed(numbers), 2, 4, 1):
        assert same(session.contribute(number), expected[number])


def test_keys_and_values_of_the_source_have_a_row_per_token_of_it(tmp_path: Path) -> None:
    job = t5(tmp_path)
    session = job.session(0)
    tokenizer = session._tokenizer
    pairs: list[Any] = list(job.texts[0])
    sources = sum(len(tokenizer(pair.source)["input_ids"]) for pair in pairs)
    targets = sum(len(tokenizer(pair.target)["input_ids"]) for pair in pairs)
    assert sources != targets
    counts = {
        group.name: session.evidence(number).grams[group.name].rows
        for number, block in enumerate(Checkpoint(job.base).manifest.blocks)
        for group in block.groups
    }
    for name, rows in counts.items():
        ours = name.startswith("encoder") or name.endswith("EncDecAttention")
        assert rows == (sources if ours else targets), name
