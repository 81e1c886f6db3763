"""What courier and gateway say to each other: one encoding, and nothing else is read."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindmerge import canonical
from blindmerge.errors import BlindmergeError, ProtocolBroken
from blindmerge_client.packets import Call, decode_arrays, encode_arrays

CALL = Call(
    b"plan",
    3,
    (b"one", b""),
    {"a": np.array([[1.0, -2.5]], dtype=np.float32), "b": np.frombuffer(b"bytes", np.uint8)},
)


def same(one: Call, other: Call) -> bool:
    assert one.merged.keys() == other.merged.keys()
    for name, array in one.merged.items():
        assert array.dtype == other.merged[name].dtype
        assert np.array_equal(array, other.merged[name])
    return (one.plan, one.block, one.messages) == (other.plan, other.block, other.messages)


def test_a_call_comes_back() -> None:
    assert same(Call.decode(CALL.encode()), CALL)
    assert same(Call.decode(Call(b"").encode()), Call(b""))


def test_arrays_come_back_and_cannot_be_written() -> None:
    arrays = decode_arrays(encode_arrays(CALL.merged))
    assert same(Call(b"", merged=arrays), Call(b"", merged=CALL.merged))
    with pytest.raises(ValueError, match="read-only"):
        arrays["a"][0, 0] = 0


WRONG: dict[str, Any] = {
    "label": ["blindmerge/1 other", b"plan", None, [], {}],
    "block": ["blindmerge/1 gateway", b"plan", True, [], {}],
    "text block": ["blindmerge/1 gateway", b"plan", "3", [], {}],
    "message": ["blindmerge/1 gateway", b"plan", None, ["text"], {}],
    "plan": ["blindmerge/1 gateway", "plan", None, [], {}],
    "short": ["blindmerge/1 gateway", b"plan", None, []],
    "long": ["blindmerge/1 gateway", b"plan", None, [], {}, 1],
    "no list": {"plan": b"plan"},
    "array": ["blindmerge/1 gateway", b"plan", None, [], {"a": b"raw"}],
    "shape": ["blindmerge/1 gateway", b"plan", None, [], {"a": ["<f4", [True], "n", b""]}],
    "object": ["blindmerge/1 gateway", b"plan", None, [], {"a": ["object", [1], "numpy", b"x"]}],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_call_is_refused(wrong: str) -> None:
    with pytest.raises(BlindmergeError):
        Call.decode(canonical.encode(WRONG[wrong]))


def test_what_is_no_dict_is_no_arrays() -> None:
    with pytest.raises(ProtocolBroken):
        decode_arrays(canonical.encode([1]))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_call_with_other_bytes_is_refused_or_is_another_call(data: st.DataObject) -> None:
    good = CALL.encode()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    try:
        call = Call.decode(bytes(bad))
    except BlindmergeError:
        return
    assert call.encode() == bytes(bad)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(BlindmergeError):
        Call.decode(noise)
