"""A federation with noise: what is refused before any work, and what owners get."""

import json
from pathlib import Path

import pytest

from blindmerge.errors import BlindmergeError, ConfigInvalid, DataInvalid
from blindmerge.privacy.terms import Noise
from blindmerge.privacy.wording import NOT_COVERED, guarantee
from blindmerge_client.persons import read_persons
from blindmerge_server.simulate.federation import read_federation
from blindmerge_server.simulate.setting import Setting, read_setting
from support.federations import pico_federation

JOB = 'method = { name = "regmean", rows_factor = 0.0 }\nexamples = 96'
STATISTICS = 'mode = "statistics"\nepsilon = 8.0'
END_TO_END = 'mode = "end-to-end"\nepsilon = 8.0'


def federation(folder: Path, noise: str, job: str = JOB) -> Path:
    file = pico_federation(folder, job=job)
    file.write_text(file.read_text() + f"[noise]\n{noise}\n")
    return file


def setting(file: Path, said: list[str] | None = None) -> Setting:
    (work := file.parent / "work").mkdir(exist_ok=True)
    say = (said if said is not None else []).append
    return read_setting(read_federation(file), file.parent / "cache", work, say)


def add_persons(folder: Path) -> None:
    """Four persons at every owner, in turns."""
    for file in folder.glob("*/train.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [row | {"person": f"p{number % 4}"} for number, row in enumerate(rows)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_plans_have_the_noise_and_a_warning_comes_before_any_work(tmp_path: Path) -> None:
    said: list[str] = []
    found = setting(federation(tmp_path, STATISTICS.replace("8.0", "0.5")), said)
    noise = found.plans["regmean"].noise
    assert isinstance(noise, Noise)
    assert noise.epsilon == 0.5
    assert 0.499 < noise.cost.epsilon(1e-6) <= 0.5
    assert any("take the method 'average'" in line for line in said)
    assert {pupil.noise for pupil in found.pupils} != {None}
    assert not (tmp_path / "cache" / "models").exists()


def test_training_and_statistics_share_one_epsilon(tmp_path: Path) -> None:
    found = setting(federation(tmp_path, END_TO_END))
    noise, owner = found.plans["regmean"].noise, found.pupils[0].noise
    assert isinstance(noise, Noise)
    assert owner is not None
    assert owner.training is not None
    total = (noise.cost + owner.training.cost).epsilon(noise.delta)
    assert 0.99 * 8.0 < total <= 8.0
    assert owner.training.training.rate == 32 / 96
    assert owner.training.divisor == 32


@pytest.mark.parametrize(
    ("noise", "job", "message"),
    [
        ('mode = "statistics"', JOB, "either epsilon or multiplier"),
        (STATISTICS + "\nmultiplier = 1.0", JOB, "either epsilon or multiplier"),
        ('mode = "end-to-end"\nmultiplier = 1.0', JOB, "needs epsilon"),
        ('mode = "statistics"\nepsilon = 0.0', JOB, "noise.epsilon"),
        (STATISTICS + "\ndelta = 1.0", JOB, "noise.delta"),
        (STATISTICS + "\ndelta = 0.1", JOB, "too large for 96 examples"),
        (STATISTICS + "\nclip = 0.0", JOB, "noise.clip"),
        (STATISTICS + "\nsigma = 1.0", JOB, "noise.sigma"),
        (STATISTICS, JOB.replace("96", "95"), "every example has to count"),
        (STATISTICS, JOB + '\ncompare = ["fisher"]', "'fisher' cannot run with noise"),
        (STATISTICS, 'method = "progressive"\nexamples = 96', "noise on both its sums"),
        (STATISTICS + '\nunit = "person"', JOB, "no column 'person'"),
    ],
)
def test_bad_noise_is_refused_before_any_work(
    noise: str, job: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BlindmergeError) as raised:
        setting(federation(tmp_path, noise, job))
    assert message in raised.value.message
    assert not (tmp_path / "cache" / "models").exists()


def test_models_that_were_not_trained_with_noise_are_no_part_of_end_to_end(
    tmp_path: Path,
) -> None:
    file = federation(tmp_path, END_TO_END)
    base = setting(file).base.path
    text = file.read_text().replace('name = "alpha"\n', f'name = "alpha"\ncheckpoint = "{base}"\n')
    file.write_text(text)
    with pytest.raises(ConfigInvalid, match="not trained with noise"):
        setting(file)


def test_an_owner_trains_with_noise_and_its_ledger_knows_the_model(tmp_path: Path) -> None:
    file = federation(tmp_path, END_TO_END + '\nunit = "person"\nunit_examples = 3')
    add_persons(tmp_path)
    found = setting(file)
    pupil = found.pupils[0]
    pupil.folder.mkdir(parents=True)
    own = pupil.fine_tuned()
    assert pupil.fine_tuned() == own, "from the cache"
    account = pupil.account(own)
    assert account is not None
    assert account.persons == ("p0", "p1", "p2", "p3") * 24
    again = pupil.account(own)
    assert again is not None
    book = again.ledger.read(account.dataset)
    assert pupil.noise is not None
    assert pupil.noise.training is not None
    assert book.spent == pupil.noise.training.cost, "charged once"


def test_persons_are_read_from_every_format(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "a", "label": "x", "person": "p1"}, {"text": "b", "label": "x", "person": "2"}]
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text("text,label,person\na,x,p1\nb,x,2\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in ("jsonl", "csv", "parquet"):
        assert read_persons(tmp_path / f"a.{suffix}", "single-label") == ("p1", "2")
    lines.write_text('{"text": "a", "label": "x"}\n')
    assert read_persons(lines, "single-label") is None
    for broken in ({"text": "b", "label": "x"}, {"text": "b", "label": "x", "person": ""}):
        lines.write_text(json.dumps(rows[0]) + "\n" + json.dumps(broken) + "\n")
        with pytest.raises(DataInvalid, match="row 2") as raised:
            read_persons(lines, "single-label")
        assert "p1" not in raised.value.message


def test_the_words_say_what_an_epsilon_covers(tmp_path: Path) -> None:
    plans = setting(federation(tmp_path, STATISTICS, JOB + '\ncompare = ["average"]')).plans
    statistics, average = guarantee(plans["regmean"].noise), guarantee(plans["average"].noise)
    assert "(8, 1e-06) per example for the statistics, given the owners' fine-tuned" in statistics
    assert "does not cover the data they fine-tuned on" in statistics
    assert "no statistics" in average
    end = guarantee(plans["regmean"].noise.model_copy(update={"mode": "end-to-end"}))  # type: ignore[union-attr]
    assert "for everything that left an owner's machine" in end
    assert NOT_COVERED in end
    assert "no guarantee" in guarantee("off")
