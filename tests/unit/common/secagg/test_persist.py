"""States on disk: back exactly, or not at all."""

from dataclasses import dataclass

import pytest

from blindmerge import canonical
from blindmerge.errors import JobAborted
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.persist import dump, load
from blindmerge.secagg.secret import Secret
from support.secure_sum import federation, manifest_for


@dataclass(frozen=True, slots=True)
class Inner:
    """A part of a state."""

    seats: tuple[int, ...]
    pair: tuple[Secret, Secret]


@dataclass(frozen=True, slots=True)
class Outer:
    """A state with all that states may hold."""

    manifest: SumManifest
    number: int
    note: str | None
    inner: Inner
    held: dict[int, tuple[Secret, Secret]]
    nested: dict[int, dict[int, bytes]]
    names: tuple[tuple[int, str], ...]


def _state(**changes: object) -> Outer:
    pair = (Secret(b"a" * 33), Secret(b"b" * 33))
    values: dict[str, object] = {
        "manifest": manifest_for(federation(3).roster),
        "number": 3,
        "note": None,
        "inner": Inner((0, 2, 70000), pair),
        "held": {5: pair, 1: pair},
        "nested": {0: {1: b"x"}, 2: {}},
        "names": ((1, "one"), (2, "two")),
    }
    return Outer(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "state",
    [
        _state(),
        _state(note="text", held={}, names=()),
        _state(inner=Inner((), (Secret(b""), Secret(b"")))),
    ],
)
def test_a_state_comes_back_and_has_one_encoding(state: Outer) -> None:
    data = dump(state)
    assert load(Outer, data) == state
    assert dump(load(Outer, data)) == data


def test_the_order_of_insertion_does_not_show() -> None:
    held = _state().held
    assert dump(_state(held=dict(sorted(held.items())))) == dump(_state())


def test_every_damaged_byte_is_noticed() -> None:
    data = dump(_state())
    for at in range(0, len(data), 7):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(JobAborted, match="cannot be read"):
            load(Outer, damaged)


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(JobAborted):
        load(Inner, dump(_state()))
    with pytest.raises(JobAborted):
        load(Outer, dump(Inner((1,), (Secret(b""), Secret(b"")))))
    with pytest.raises(JobAborted):
        load(Outer, canonical.encode([1, 2]))
