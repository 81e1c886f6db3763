"""The canonical encoding: vectors with failing twins, and what has no encoding."""

import json
import tracemalloc
from enum import StrEnum
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest

from blindmerge import canonical
from blindmerge.errors import NotCanonical

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "canonical.json").read_text(encoding="utf-8")
)
INVALID = VECTORS["invalid"]


def _value(vector: dict[str, Any]) -> Any:
    value = vector["value"]
    # JSON has no bytes: {"bytes": hex} stands for them.
    return bytes.fromhex(value["bytes"]) if isinstance(value, dict) and "bytes" in value else value


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["hex"][:20])
def test_valid_vector_is_read_and_written(vector: dict[str, Any]) -> None:
    data, value = bytes.fromhex(vector["hex"]), _value(vector)
    assert canonical.encode(value) == data
    decoded = canonical.decode(data)
    assert decoded == value
    assert type(decoded) is type(value)
    assert cbor2.loads(data) == value, "the vector itself"


@pytest.mark.parametrize("vector", INVALID, ids=lambda vector: vector["reason"])
def test_invalid_vector_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(NotCanonical) as refused:
        canonical.decode(bytes.fromhex(vector["hex"]))
    assert vector["error"] in refused.value.message


@pytest.mark.parametrize(
    "vector", [v for v in INVALID if v["twin"]], ids=lambda vector: vector["reason"]
)
def test_twin_of_an_invalid_vector_is_valid(vector: dict[str, Any]) -> None:
    twin = bytes.fromhex(vector["twin"])
    assert canonical.encode(canonical.decode(twin)) == twin


@pytest.mark.parametrize(
    "vector",
    [v for v in INVALID if v["twin"] and v["error"].startswith("is not in its shortest")],
    ids=lambda vector: vector["reason"],
)
def test_longer_form_has_the_value_of_its_twin(vector: dict[str, Any]) -> None:
    # A general decoder reads both: the refusal is about the form, not the value.
    assert cbor2.loads(bytes.fromhex(vector["hex"])) == cbor2.loads(bytes.fromhex(vector["twin"]))


@pytest.mark.parametrize("head", ["5b", "7b", "9b", "bb"])
def test_claimed_length_allocates_nothing(head: str) -> None:
    data = bytes.fromhex(head) + (1 << 40).to_bytes(8, "big") + b"\x00" * 100
    tracemalloc.start()
    try:
        with pytest.raises(NotCanonical):
            canonical.decode(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 100 bytes of content, a hundred bytes each, and the exception.
    assert peak_bytes < 100 * 100 + 10_000


@pytest.mark.parametrize(
    "data",
    [b"\x80" * 10_000, b"\xa0" * 10_000, b"\x40" * 10_000, b"\xf4" * 10_000],
    ids=["lists", "maps", "bytes", "booleans"],
)
def test_memory_is_bounded_by_the_length_of_the_data(data: bytes) -> None:
    whole = b"\x99" + len(data).to_bytes(2, "big") + data
    tracemalloc.start()
    try:
        canonical.decode(whole)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100 * len(whole)


class _Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        1 << 64,
        -(1 << 64) - 1,
        {1: "one"},
        {b"a": 1},
        {None: 1},
        {_Colour.RED: 1},
        _Colour.RED,
        np.float64(1.0),
        np.int64(1),
        bytearray(b"a"),
        {"a"},
        object,
        1j,
    ],
    ids=repr,
)
def test_value_outside_the_subset_is_refused(value: object) -> None:
    with pytest.raises(NotCanonical):
        canonical.encode(value)
    with pytest.raises(NotCanonical):
        canonical.encode({"nested": [value]})


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, ["secret \udc80"]])
def test_lone_surrogate_is_refused_and_not_quoted(value: object) -> None:
    with pytest.raises(NotCanonical) as refused:
        canonical.encode(value)
    assert "secret" not in refused.value.message
    # The codec's exception carries the whole text; it must not travel along.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def _nested(depth: int) -> object:
    value: object = []
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return value


def test_depth_has_one_limit_for_both_directions() -> None:
    assert canonical.decode(canonical.encode(_nested(32))) == _nested(32)
    with pytest.raises(NotCanonical, match="nested deeper than 32"):
        canonical.encode(_nested(33))


def test_value_that_holds_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(NotCanonical, match="nested deeper than 32"):
        canonical.encode(loop)


def test_equal_values_have_equal_bytes() -> None:
    assert canonical.encode(-0.0) == canonical.encode(0.0)
    assert canonical.encode((1, 2)) == canonical.encode([1, 2])
    assert canonical.encode({"b": 1, "a": 2}) == canonical.encode({"a": 2, "b": 1})


def test_types_stay_apart() -> None:
    encodings = {canonical.encode(value) for value in (1, 1.0, True, "1", b"1", [1], None)}
    assert len(encodings) == 7
