"""A server or courier that delivers something else than the merged tensors of the plan.

Nothing of it is written, and the owner's own model is untouched.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import PeerInvalid
from blindmerge.signed_plan import SignedPlan
from blindmerge_client.guard import Guard
from blindmerge_client.packets import decode_arrays, encode_arrays
from support.deployment import Deployment

Tensors = dict[str, np.ndarray[Any, Any]]


def transposed(tensors: Tensors) -> Tensors:
    return {name: np.ascontiguousarray(each.T) for name, each in tensors.items()}


def one_row_more(tensors: Tensors) -> Tensors:
    return {name: np.concatenate([each, each[:1]]) for name, each in tensors.items()}


def empty(tensors: Tensors) -> Tensors:
    return {name: each[:0] for name, each in tensors.items()}


def without_one(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[1:])


def with_one_more(tensors: Tensors) -> Tensors:
    return tensors | {"backdoor.weight": np.zeros(3)}


def with_a_path_for_a_name(tensors: Tensors) -> Tensors:
    return tensors | {"../../identity": np.zeros(32)}


def with_nan(tensors: Tensors) -> Tensors:
    return {name: np.full_like(each, np.nan) for name, each in tensors.items()}


def with_infinity(tensors: Tensors) -> Tensors:
    return {name: np.full_like(each, np.inf) for name, each in tensors.items()}


def of_other_numbers(tensors: Tensors) -> Tensors:
    return {name: each.astype(np.complex128) for name, each in tensors.items()}


WRONG: tuple[Callable[[Tensors], Tensors], ...] = (
    transposed,
    one_row_more,
    empty,
    without_one,
    with_one_more,
    with_a_path_for_a_name,
    with_nan,
    with_infinity,
    of_other_numbers,
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def anna(federation: Deployment) -> Guard:
    return Guard(federation.owners["anna"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def block_of(federation: Deployment, signed: SignedPlan, number: int) -> Tensors:
    return dict(Checkpoint(federation.base).read(signed.plan.blocks[number].shapes))


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_other_tensors_are_refused_and_nothing_is_written(
    federation: Deployment, anna: Guard, spoil: Callable[[Tensors], Tensors]
) -> None:
    signed, home = federation.signed(), federation.owners["anna"]
    anna.receive(signed, {})  # the job is there, so that only a delivery can change the folder
    before = files(home.folder)
    with pytest.raises(PeerInvalid):
        anna.receive(signed, decode_arrays(encode_arrays(spoil(block_of(federation, signed, 1)))))
    assert files(home.folder) == before


def test_the_right_tensors_are_taken(federation: Deployment, anna: Guard) -> None:
    signed = federation.signed()
    anna.receive(signed, block_of(federation, signed, 1))
    folder = federation.owners["anna"].jobs / signed.plan.sha256
    assert any("merged" in name for name in files(folder))
