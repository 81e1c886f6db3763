"""The ledger: charged before anything leaves, once per release, whenever the process dies."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from blindmerge.errors import (
    BudgetExhausted,
    ConfigInvalid,
    JobAborted,
    LedgerTampered,
    PolicyRefused,
    ResourceMissing,
)
from blindmerge.privacy.accountant import Cost, Training, epsilon_of
from blindmerge_client.ledger import Budget, Ledger

DATASET = "sha256 of the examples"
DELTA = 1e-6
BUDGET = Budget(epsilon=epsilon_of(1.0, DELTA), delta=DELTA)
NOW = 1_800_000_000


class _Noise:
    """Draws other bytes every time, and remembers them."""

    def __init__(self) -> None:
        self.made: list[bytes] = []

    def __call__(self, path: Path) -> None:
        self.made.append(b"noised %d" % len(self.made))
        path.write_bytes(self.made[-1])


def ask(
    ledger: Ledger,
    make: Callable[[Path], None],
    job: str = "job",
    rho: float = 0.25,
    now: int = NOW,
) -> bytes:
    cost = Cost(Fraction(rho))
    path = ledger.release(DATASET, job, cost=cost, budget=BUDGET, now=now, make=make)
    return path.read_bytes()


def spent(ledger: Ledger) -> Fraction:
    return ledger.read(DATASET).spent.rho


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", DATASET, now=NOW)


def test_a_release_is_charged_once_and_a_retry_gets_its_bytes(
    ledger: Ledger, tmp_path: Path
) -> None:
    noise = _Noise()
    first = ask(ledger, noise)
    assert ask(Ledger(tmp_path / "ledger"), noise, now=NOW - 9) == first == b"noised 0"
    assert spent(ledger) == Fraction(1, 4)
    assert ask(ledger, noise, job="second") == b"noised 1"
    assert ask(ledger, noise, job="third") == b"noised 2"
    assert spent(ledger) == Fraction(3, 4)
    kinds = [entry.kind for entry in ledger.read(DATASET).entries]
    assert kinds == ["opened", *["charged", "stored"] * 3]


def test_only_the_owner_may_read_it(ledger: Ledger, tmp_path: Path) -> None:
    ask(ledger, _Noise())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4  # entries, head, lock, one release
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_the_charge_is_on_disk_before_the_noise_is_drawn(ledger: Ledger, tmp_path: Path) -> None:
    def die(_: Path) -> None:
        assert b"charged" in (tmp_path / "ledger" / "entries").read_bytes()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(ledger, die)
    assert spent(ledger) == Fraction(1, 4)
    assert ask(ledger, _Noise()) == b"noised 0"
    assert spent(ledger) == Fraction(1, 2), "a crash counts as spent"


def test_what_would_exceed_the_budget_is_refused_before_any_work(ledger: Ledger) -> None:
    noise = _Noise()
    ask(ledger, noise, rho=0.75)
    with pytest.raises(
        BudgetExhausted, match=r"to epsilon .* at delta 1e-06; .* is spent"
    ) as raised:
        ask(ledger, noise, job="second", rho=0.2500001)
    assert raised.value.exit_code == 8
    assert len(noise.made) == 1
    ask(ledger, noise, job="second", rho=0.25)
    assert spent(ledger) == 1


def test_a_retry_at_another_price_and_a_clock_set_back_are_refused(ledger: Ledger) -> None:
    noise = _Noise()
    ask(ledger, noise)
    with pytest.raises(PolicyRefused, match="another price"):
        ask(ledger, noise, rho=0.125)
    with pytest.raises(PolicyRefused, match="clock"):
        ask(ledger, noise, job="second", now=NOW - 1)
    assert len(noise.made) == 1


def test_two_jobs_at_once_are_refused(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindmerge_client.ledger._PATIENCE_S", 0.0)

    def other(path: Path) -> None:
        with pytest.raises(JobAborted, match=f"process {os.getpid()} uses the ledger"):
            ask(Ledger(tmp_path / "ledger"), _Noise(), job="second")
        with pytest.raises(JobAborted, match="uses the ledger"):
            ledger.read(DATASET)
        path.write_bytes(b"first")

    assert ask(ledger, other) == b"first"
    assert ask(ledger, _Noise(), job="second") == b"noised 0"


def test_ledgers_of_other_examples_and_missing_ones_are_refused(
    ledger: Ledger, tmp_path: Path
) -> None:
    with pytest.raises(LedgerTampered, match="not that of these examples"):
        ledger.read("other examples")
    with pytest.raises(LedgerTampered, match="no ledger") as raised:
        Ledger(tmp_path / "nowhere").read(DATASET)
    assert "count the budget of these examples as spent" in raised.value.hint
    with pytest.raises(ConfigInvalid, match="already"):
        Ledger.create(tmp_path / "ledger", DATASET, now=NOW)


def test_every_edited_byte_is_seen(ledger: Ledger, tmp_path: Path) -> None:
    ask(ledger, _Noise())
    for name in ("entries", "head"):
        path = tmp_path / "ledger" / name
        data = path.read_bytes()
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(LedgerTampered):
                ledger.read(DATASET)
        for end in range(len(data)):
            path.write_bytes(data[:end])
            with pytest.raises(LedgerTampered):
                ledger.read(DATASET)
        path.unlink()
        with pytest.raises(LedgerTampered):
            ledger.read(DATASET)
        path.write_bytes(data)
    assert spent(ledger) == Fraction(1, 4)


def test_rolling_back_one_of_the_files_gains_nothing(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    copies = {name: (folder / name).read_bytes() for name in ("entries", "head")}
    ask(ledger, _Noise())
    for name, old in copies.items():
        new = (folder / name).read_bytes()
        (folder / name).write_bytes(old)
        with pytest.raises(LedgerTampered):
            ledger.read(DATASET)
        (folder / name).write_bytes(new)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"noised 9")])
def test_a_release_that_was_changed_is_not_sent(
    ledger: Ledger, tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    noise = _Noise()
    ask(ledger, noise)
    spoil(next((tmp_path / "ledger" / "releases").iterdir()))
    with pytest.raises(LedgerTampered, match="stored release"):
        ask(ledger, noise)
    assert len(noise.made) == 1


class _Killed(BaseException):
    """The process is no more."""


class _Killer:
    """Kills at the n-th fsync or rename, before or after it took place."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self._left, self._after = at, after
        patch.setattr(os, "fsync", self._deadly(os.fsync))
        patch.setattr(Path, "replace", self._deadly(Path.replace))

    def _deadly(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise _Killed
            result = function(*arguments)
            if self._left == 0:
                raise _Killed
            return result

        return call


def _killed(tmp_path: Path, noise: _Noise, at: int, *, after: bool) -> bool:
    """Whether the process was killed while it made a ledger and a release."""
    with pytest.MonkeyPatch.context() as patch:
        _Killer(patch, at, after=after)
        try:
            Ledger.create(tmp_path / "ledger", DATASET, now=NOW)
            ask(Ledger(tmp_path / "ledger"), noise)
        except _Killed:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_write_it_goes_on_and_never_gives_two_releases_for_one_charge(
    tmp_path: Path, after: bool
) -> None:
    for at in range(1, 100):
        noise, place = _Noise(), tmp_path / str(at)
        killed = _killed(place, noise, at, after=after)
        if not (place / "ledger").exists():
            Ledger.create(place / "ledger", DATASET, now=NOW)
        ledger = Ledger(place / "ledger")
        assert spent(ledger) >= Fraction(len(noise.made), 4)
        data = ask(ledger, noise)
        assert data == noise.made[-1] == ask(ledger, noise)
        assert Fraction(len(noise.made), 4) <= spent(ledger) <= Fraction(1, 2)
        if not killed:
            assert at > 10, "every sync and rename of all files was tried"
            return
    raise AssertionError("it was killed every time")


def test_half_an_entry_is_dropped_wherever_it_ends(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "entries"
    head = (tmp_path / "ledger" / "head").read_bytes()
    before = path.read_bytes()
    ask(ledger, _Noise())
    whole = path.read_bytes()
    (tmp_path / "ledger" / "head").write_bytes(head)
    charge_ends = len(before) + 4 + int.from_bytes(whole[len(before) : len(before) + 4], "big") + 32
    for end in range(len(before), charge_ends):
        path.write_bytes(whole[:end])
        assert spent(ledger) == 0
    # The entry whose head was not written yet counts.
    path.write_bytes(whole[:charge_ends])
    assert spent(ledger) == Fraction(1, 4)
    path.write_bytes(whole[: charge_ends - 1])
    assert ask(ledger, _Noise()) == b"noised 0"
    assert spent(ledger) == Fraction(1, 4)


def test_a_full_disk_is_explained_and_nothing_is_drawn(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    noise = _Noise()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceMissing, match="disk is full"):
        ask(ledger, noise)
    assert not noise.made


SGD = Training(multiplier=1.1, rate=0.1, steps=50)


MODEL = "ab" * 32


def train(ledger: Ledger, epsilon: float = 10.0) -> None:
    budget, cost = Budget(epsilon, DELTA), Cost(trainings=(SGD,))
    ledger.train(DATASET, "training", cost=cost, budget=budget, now=NOW, model=MODEL)


def test_a_training_is_charged_and_its_model_known(ledger: Ledger) -> None:
    train(ledger)
    book = ledger.read(DATASET)
    assert book.training_of(bytes.fromhex(MODEL)) == SGD
    assert book.training_of(bytes(32)) is None
    assert book.spent == Cost(trainings=(SGD,))


def test_training_and_release_are_in_one_budget(ledger: Ledger) -> None:
    alone = Cost(trainings=(SGD,)).epsilon(DELTA)
    together = Cost(Fraction(1, 4), (SGD,)).epsilon(DELTA)
    assert alone < together < alone + epsilon_of(0.25, DELTA)
    train(ledger, epsilon=alone)
    noise, cost = _Noise(), Cost(Fraction(1, 4))

    def release(epsilon: float) -> None:
        budget = Budget(epsilon, DELTA)
        ledger.release(DATASET, "job", cost=cost, budget=budget, now=NOW, make=noise)

    with pytest.raises(BudgetExhausted):
        release(together * (1 - 1e-9))
    assert not noise.made
    release(together)


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_write_no_model_is_known_that_was_not_charged(
    tmp_path: Path, after: bool
) -> None:
    for at in range(1, 100):
        ledger = Ledger.create(tmp_path / str(at), DATASET, now=NOW)
        with pytest.MonkeyPatch.context() as patch:
            _Killer(patch, at, after=after)
            try:
                train(ledger)
            except _Killed:
                killed = True
            else:
                killed = False
        book = ledger.read(DATASET)
        if book.training_of(bytes.fromhex(MODEL)) is not None:
            assert book.spent == Cost(trainings=(SGD,))
        train(ledger, epsilon=100.0)
        assert len(ledger.read(DATASET).spent.trainings) in (1, 2)
        if not killed:
            assert at > 5
            return
    raise AssertionError("it was killed every time")
