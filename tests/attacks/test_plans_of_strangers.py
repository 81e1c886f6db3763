"""Whoever reaches an owner's node, or the server's port, sends plans: only pinned signatures count.

A plan that is not signed by a pinned coordinator is refused before anything of it is stored.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.canonical import decode, encode
from blindmerge.errors import BlindmergeError, PolicyRefused, ProtocolBroken
from blindmerge.identity import Identity
from blindmerge.secagg.secret import OsRandomness
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.guard import Guard
from blindmerge_server.exchanges import Kind
from support.deployment import Deployment
from support.guards import messages_before

YEAR_S = 365 * 86400


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def anna(federation: Deployment) -> Guard:
    return Guard(federation.owners["anna"])


def zeroed(federation: Deployment) -> SignedPlan:
    return SignedPlan(federation.signed().plan, bytes(64))


def by_a_stranger(federation: Deployment) -> SignedPlan:
    return federation.signed(by=Identity.generate("coordinator", OsRandomness()))


def by_an_owner(federation: Deployment) -> SignedPlan:
    return federation.signed(by=federation.owners["bert"].identity("bert"))


def by_the_owner_itself(federation: Deployment) -> SignedPlan:
    return federation.signed(by=federation.owners["anna"].identity("anna"))


def changed_after_it_was_signed(federation: Deployment) -> SignedPlan:
    good = federation.signed()
    return SignedPlan(good.plan.model_copy(update={"examples": 999}), good.signature)


def with_the_signature_of_another_plan(federation: Deployment) -> SignedPlan:
    return SignedPlan(federation.signed().plan, federation.signed(job="other").signature)


def with_a_bare_signature_of_its_bytes(federation: Deployment) -> SignedPlan:
    # Without the label a signature of other bytes could be replayed as one of a plan.
    plan = federation.signed().plan
    return SignedPlan(plan, federation.server.identity().sign(plan.encode()))


FORGERIES: tuple[Callable[[Deployment], SignedPlan], ...] = (
    zeroed,
    by_a_stranger,
    by_an_owner,
    by_the_owner_itself,
    changed_after_it_was_signed,
    with_the_signature_of_another_plan,
    with_a_bare_signature_of_its_bytes,
)


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_plan_that_no_pinned_coordinator_signed_is_not_even_stored(
    federation: Deployment, anna: Guard, forge: Callable[[Deployment], SignedPlan]
) -> None:
    forged = SignedPlan.decode(forge(federation).encode())
    questions: list[Callable[[], object]] = [
        lambda: anna.answer(forged, 0, (b"x",)),
        lambda: anna.receive(forged, {"a": np.zeros(1)}),
        lambda: anna.evaluate(forged),
    ]
    for ask in questions:
        with pytest.raises(PolicyRefused, match="rule 'coordinators': asked by a stranger"):
            ask()
    assert not [path for path in federation.owners["anna"].jobs.glob("*") if path.name != "lock"]


def test_a_plan_without_a_signature_is_no_plan(federation: Deployment) -> None:
    parts: Any = decode(federation.signed().encode())
    label, plan, signature = parts
    for short in (b"", signature[:63], signature + b"x"):
        with pytest.raises(ProtocolBroken):
            SignedPlan.decode(encode([label, plan, short]))
    for data in (encode([label, plan]), federation.signed().plan.encode()):
        with pytest.raises(BlindmergeError):
            SignedPlan.decode(data)


def test_a_coordinator_that_is_not_pinned_any_more_is_a_stranger(tmp_path: Path) -> None:
    federation = Deployment(tmp_path)
    home, signed = federation.owners["anna"], federation.signed()
    anna = Guard(home)
    assert anna.answer(signed, None, ()) == {}
    text = home.policy_file.read_text()
    home.policy_file.write_text(text.replace("coordinator = ", "# coordinator = "))
    with pytest.raises(PolicyRefused, match="rule 'coordinators'"):
        anna.answer(signed, None, ())


def test_a_plan_that_is_replayed_after_its_time_makes_no_new_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The policy still allows the job; the sum that the coordinator proposed has expired.
    federation = Deployment(tmp_path)
    guards = {name: Guard(home) for name, home in federation.owners.items()}
    signed = federation.signed()
    block, messages = messages_before(federation, guards, signed, Kind.ADVERTISE)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + YEAR_S)
    with pytest.raises(BlindmergeError, match="expire"):
        guards["anna"].answer(signed, block, messages)
    assert not list(federation.owners["anna"].jobs.glob("*/seat.state"))
    monkeypatch.undo()
    assert guards["bert"].answer(signed, block, messages)  # whose clock never was ahead


def test_a_policy_that_has_expired_answers_nobody(tmp_path: Path) -> None:
    federation = Deployment(tmp_path)
    home = federation.owners["anna"]
    home.policy_file.write_text(home.policy_file.read_text().replace("9999-12-31", "2020-01-31"))
    with pytest.raises(PolicyRefused, match=r"rule 'expires': asked on .*; allowed until 2020-01"):
        Guard(home).answer(federation.signed(), None, ())


def test_a_plan_of_a_pinned_coordinator_cannot_change_the_sum(
    federation: Deployment, anna: Guard
) -> None:
    # The same job name, another plan: its hash is another, and so are its keys and its folder.
    one, other = federation.signed(), federation.signed(max_length=17)
    assert one.plan.job == other.plan.job
    assert one.plan.sha256 != other.plan.sha256
    assert anna.answer(one, None, ()) == {}
    with pytest.raises(PolicyRefused, match="'max_jobs'"):
        anna.answer(other, None, ())
