"""A job with noise at one owner: what is refused, what is charged, what leaves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import blindmerge_client.noise as noise_module
from blindmerge.errors import (
    BudgetExhausted,
    DataInvalid,
    LedgerTampered,
    PolicyRefused,
)
from blindmerge.privacy.accountant import Cost, Training, epsilon_of, rho_of
from blindmerge.statistic import unpack_symmetric
from blindmerge_client.collect.private import collect_private_grams, units_of
from blindmerge_client.ledger import subject_of
from blindmerge_client.noise import Account
from blindmerge_client.session import Session
from support.jobs import Job, make_job, with_plan
from support.noise import DELTA, NOW, account_of, with_noise
from support.randomness import CounterRandomness


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return with_noise(make_job(tmp_path, owners=1, texts=6, rows_factor=0.0))


def session(job: Job, account: Account | None, name: str = "s", texts: Any = None) -> Session:
    texts = job.texts[0] if texts is None else texts
    return Session(job.plan, job.base, job.owners[0], texts, job.folder / name, account)


def _at(job: Job, name: str) -> tuple[Any, ...]:
    return job.base, job.owners[0], job.texts[0], job.folder / name


def grams_of(account: Account, job: Job) -> dict[str, Any]:
    """What was released, as the ledger has it."""
    entry = account.ledger.read(account.dataset).find("stored", subject_of(job.plan))
    assert entry is not None
    found = next(account.ledger._folder.glob(f"releases/{entry.sha256.hex()}"))
    return dict(load_file(found))


def contribute(session: Session) -> dict[str, Any]:
    parts = [session.contribute(number).arrays for number in range(len(session.plan.blocks))]
    return {name: array for part in parts for name, array in part.items()}


def test_one_release_is_charged_for_all_blocks_and_a_retry_sends_the_same(
    job: Job, tmp_path: Path
) -> None:
    account = account_of(tmp_path / "ledger")
    first = contribute(session(job, account))
    book = account.ledger.read(account.dataset)
    assert [entry.kind for entry in book.entries] == ["opened", "charged", "stored"]
    assert float(book.spent.rho) == rho_of(1.0)
    again = contribute(session(job, account))
    elsewhere = contribute(session(job, account_of(tmp_path / "ledger"), "another folder"))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_array_equal(array, elsewhere[name])
    assert account.ledger.read(account.dataset) == book
    for name, array in first.items():
        if name.endswith(":gram"):
            width = round((2 * len(array)) ** 0.5 - 0.5)
            assert np.linalg.eigvalsh(unpack_symmetric(array, width))[0] > 0, "a ridge is there"


def test_the_moment_is_the_noised_gram_times_the_change(job: Job, tmp_path: Path) -> None:
    """PROOF.md §7.2: G~ D, and nothing else of the examples."""
    from blindmerge.merge.stacking import stacked

    own = session(job, account_of(tmp_path / "ledger"))
    sent = contribute(own)
    for number, block in enumerate(job.plan.blocks):
        evidence = own.evidence(number)
        for group in block.groups:
            gram = unpack_symmetric(sent[f"{group.name}:gram"], group.width)
            for layer in group.layers:
                change = stacked(layer, evidence.own) - stacked(layer, evidence.base)
                np.testing.assert_allclose(
                    sent[f"{layer.name}:moment"], gram @ change, rtol=1e-9, atol=1e-12
                )


def test_with_hardly_any_noise_it_is_the_gram_of_the_inputs(job: Job, tmp_path: Path) -> None:
    own = session(job, account_of(tmp_path / "ledger"))
    noised, exact = own._noised, Session(with_plan(job, noise="off").plan, *_at(job, "off"))
    assert noised is not None
    terms = replace(noised.terms, clip=2.0**8, multiplier=0.01)
    alone, units = own._batched(job.texts[0], 1), noised.units(6)
    whitening = own._whitening()
    released = collect_private_grams(
        own._model, noised.groups, alone, units, whitening, terms
    ).release(CounterRandomness("noise"))
    for number, block in enumerate(job.plan.blocks):
        for group in block.groups:
            evidence, matrix = (
                exact.evidence(number).grams[group.name],
                whitening.matrix(group.name),
            )
            expected = matrix @ evidence.total @ matrix
            step = 2.0 ** -terms.exponent(group.name)
            largest = float(np.abs(expected).max() ** 0.5)  # of an entry of the rows
            rounding = evidence.rows * step * (largest + step / 4)
            # Six standard deviations: of a few thousand numbers none is beyond.
            bound = rounding + 6 * terms.noise_std(group.name) + 1e-4 * np.abs(expected).max()
            found = unpack_symmetric(released[group.name], group.width)
            assert (np.abs(found - expected) <= bound).all(), group.name
            assert np.abs(expected).max() > 2 * bound or group.rows == "sequences"


def _released(
    job: Job, tmp_path: Path, name: str, texts: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The release of an owner with these texts, with noise from a fixed counter."""
    monkeypatch.setattr(noise_module, "OsRandomness", lambda: CounterRandomness("noise"))
    account = account_of(tmp_path / name)
    session(job, account, f"session-{name}", texts).contribute(0)
    session(job, account, f"session-{name}", texts).contribute(1)
    return grams_of(account, job)


def test_one_example_moves_the_release_by_the_clip_at_most_and_nothing_else(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROOF.md §2, §3.3: on whole models, with the same noise for data with and without it."""
    small = with_noise(job, clip=3.0)
    texts = job.texts[0]
    runs = {
        "all": texts,
        "without": texts[:-1],
        "few": texts[-2:],
        "few without": texts[-2:-1],
    }
    found = {
        name: _released(small, tmp_path, name.replace(" ", "-"), each, monkeypatch)
        for name, each in runs.items()
    }
    squares = 0.0
    for name in found["all"]:
        moved = found["all"][name] - found["without"][name]
        # The same integers whatever other examples there are: not one bit differs.
        np.testing.assert_array_equal(moved, found["few"][name] - found["few without"][name])
        width = round((2 * len(moved)) ** 0.5 - 0.5)
        squares += float(np.sum(unpack_symmetric(moved, width) ** 2))
    assert 0.9 * 3.0 < squares**0.5 <= 3.0, "it was clipped, to C and not further"


def test_beside_the_grams_everything_is_the_same_for_all_data_sets(
    job: Job, tmp_path: Path
) -> None:
    """PROOF.md §1.4: neither the number of examples nor of tokens leaves."""
    sent = [
        contribute(session(job, account_of(tmp_path / name), name, texts))
        for name, texts in (("many", job.texts[0]), ("one", job.texts[0][:1]))
    ]
    for name in sent[0]:
        if not name.endswith((":gram", ":moment")):
            np.testing.assert_array_equal(sent[0][name], sent[1][name])


def test_groups_without_weight_are_not_released_and_are_averaged(job: Job, tmp_path: Path) -> None:
    grams = job.plan.noise.grams.model_dump()  # type: ignore[union-attr]
    grams["weights"] = (0.0, *grams["weights"][1:])
    account = account_of(tmp_path / "ledger")
    own = session(with_noise(job, grams=grams), account)
    first = own.plan.blocks[1].groups[0]
    sent = own.contribute(1)
    assert not sent[f"{first.name}:gram"].any()
    assert sent[f"{first.name}:starved"] == 1
    assert first.name not in grams_of(account, with_noise(job, grams=grams))


def test_what_would_exceed_the_budget_is_refused_before_any_work(job: Job, tmp_path: Path) -> None:
    cost = epsilon_of(rho_of(1.0), DELTA)
    account = account_of(tmp_path / "ledger", epsilon=1.2 * cost)
    contribute(session(job, account))
    second = with_plan(job, job="job-2")
    with pytest.raises(BudgetExhausted, match=r"is spent, .* is allowed"):
        session(second, account, "second")
    assert not (job.folder / "second").exists()
    session(job, account)  # the first one's retry costs nothing


def test_owners_without_a_ledger_or_with_another_ones_are_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match="no ledger"):
        session(job, None)
    account = account_of(tmp_path / "ledger")
    with pytest.raises(LedgerTampered, match="not that of these examples"):
        session(job, Account(account.ledger, "other examples", account.budget))


def test_more_examples_than_the_plan_says_are_refused_and_not_cut(job: Job, tmp_path: Path) -> None:
    few = with_plan(job, examples=5)
    with pytest.raises(DataInvalid, match="every one has to count"):
        session(few, account_of(tmp_path / "ledger"))


def test_persons_are_units_of_their_first_examples(job: Job, tmp_path: Path) -> None:
    assert units_of(5, ("a", "b", "a", "a", "b"), 2) == ((0, 2), (1, 4))
    assert units_of(3, None, 1) == ((0,), (1,), (2,))
    persons = with_noise(job, unit="person", unit_examples=2)
    with pytest.raises(DataInvalid, match="do not say whose they are"):
        session(persons, account_of(tmp_path / "none"))
    who = ("a", "a", "a", "b", "b", "c")
    whole = account_of(tmp_path / "whole", persons=who)
    contribute(session(persons, whole, "whole"))
    assert float(whole.ledger.read(whole.dataset).spent.rho) == rho_of(1.0)


def test_one_person_moves_the_release_by_the_clip_at_most(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = with_noise(job, clip=3.0, unit="person", unit_examples=3)
    monkeypatch.setattr(noise_module, "OsRandomness", lambda: CounterRandomness("noise"))
    found = []
    for count in (3, 6):
        who = ("a", "a", "a", "b", "b", "b")[:count]
        account = account_of(tmp_path / str(count), persons=who)
        session(small, account, f"s{count}", job.texts[0][:count]).contribute(1)
        found.append(grams_of(account, small))
    squares = 0.0
    for name in found[0]:
        width = round((2 * len(found[0][name])) ** 0.5 - 0.5)
        squares += float(np.sum(unpack_symmetric(found[1][name] - found[0][name], width) ** 2))
    assert 0.9 * 3.0 < squares**0.5 <= 3.0


def test_end_to_end_needs_a_model_that_was_trained_with_enough_noise(
    job: Job, tmp_path: Path
) -> None:
    account = account_of(tmp_path / "ledger")
    training = Training(multiplier=1.5, rate=0.5, steps=20)
    total = (job.plan.noise.cost + Cost(trainings=(training,))).epsilon(DELTA)  # type: ignore[union-attr]
    plans = {
        epsilon: with_noise(job, mode="end-to-end", epsilon=epsilon)
        for epsilon in (0.99 * total, total)
    }
    with pytest.raises(PolicyRefused, match="not trained with noise"):
        session(plans[total], account, "untrained")
    from blindmerge.checkpoint import Checkpoint

    account.ledger.train(
        account.dataset,
        "training",
        cost=Cost(trainings=(training,)),
        budget=account.budget,
        now=NOW,
        model=Checkpoint(job.owners[0]).sha256,
    )
    with pytest.raises(PolicyRefused, match="together cost epsilon"):
        session(plans[0.99 * total], account, "dear")
    contribute(session(plans[total], account, "enough"))
    spent = account.ledger.read(account.dataset).spent
    assert spent.epsilon(DELTA) == pytest.approx(total)
