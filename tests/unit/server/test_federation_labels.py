"""Tasks and labels of a federation file, the job's and the owners' own."""

from pathlib import Path
from typing import get_args

import pytest

from blindmerge.errors import ConfigInvalid
from blindmerge.tasks import Task
from blindmerge_server.simulate.federation import read_federation
from support.federations import pico_federation

OWN = {"beta": ("sour", "sweet")}


def test_owners_with_the_jobs_labels_share_a_head(tmp_path: Path) -> None:
    federation = read_federation(pico_federation(tmp_path))
    assert not federation.heads_kept
    for owner in federation.owners:
        assert federation.labels_of(owner) == ("negative", "positive")


def test_one_owner_with_other_labels_makes_all_keep_their_heads(tmp_path: Path) -> None:
    federation = read_federation(pico_federation(tmp_path, own_labels=OWN))
    assert federation.heads_kept
    labels = {owner.name: federation.labels_of(owner) for owner in federation.owners}
    assert labels["beta"] == ("sour", "sweet")
    assert labels["alpha"] == labels["gamma"] == ("negative", "positive")


def test_the_order_of_labels_counts(tmp_path: Path) -> None:
    turned = {"beta": ("positive", "negative")}
    assert read_federation(pico_federation(tmp_path, own_labels=turned)).heads_kept


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('["a"]', "owner.beta.labels: a task needs at least two labels"),
        ('["a", "a"]', 'owner.beta.labels: "a" occurs twice; every label needs its own name'),
        ('["a", ""]', "owner.beta.labels: an empty label is not allowed"),
    ],
)
def test_mistakes_in_an_owners_labels_are_named(wrong: str, message: str, tmp_path: Path) -> None:
    file = pico_federation(tmp_path, own_labels=OWN)
    file.write_text(file.read_text().replace('labels = ["sour", "sweet"]', f"labels = {wrong}"))
    with pytest.raises(ConfigInvalid) as raised:
        read_federation(file)
    assert message in raised.value.message


def test_a_task_that_there_is_not_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    file = pico_federation(tmp_path)
    file.write_text(file.read_text().replace("single-label", "translation"))
    with pytest.raises(ConfigInvalid) as raised:
        read_federation(file)
    assert 'job.task: "translation" is not allowed; choose ' in raised.value.message
    assert all(f'"{task}"' in raised.value.message for task in get_args(Task))
