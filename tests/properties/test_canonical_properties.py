"""The canonical encoding against cbor2, and as the only form of a value."""

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindmerge import canonical
from blindmerge.errors import NotCanonical

_WHOLE = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.text(max_size=30)
    | st.binary(max_size=30)
)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def _nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=9), inner, max_size=6)
        ),
        max_leaves=20,
    )


def _sorted(value: Any) -> Any:
    """Maps in the order of RFC 8949, section 4.2.1, for keys of text; no negative zeros."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return {key: _sorted(value[key]) for key in keys}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return 0.0 if type(value) is float and value == 0 else value


@given(_nested(_WHOLE))
def test_equals_the_canonical_encoding_of_cbor2(value: Any) -> None:
    assert canonical.encode(value) == cbor2.dumps(value, canonical=True)


@given(_nested(_WHOLE | _FLOATS))
def test_equals_cbor2_with_floats_of_eight_bytes(value: Any) -> None:
    # Canonical cbor2 shortens floats, plain cbor2 does not, but keeps the order of maps.
    assert canonical.encode(value) == cbor2.dumps(_sorted(value))


@given(_nested(_WHOLE | _FLOATS))
def test_decode_returns_the_value(value: Any) -> None:
    # repr tells True from 1 and 1 from 1.0, which == does not.
    assert repr(canonical.decode(canonical.encode(value))) == repr(_sorted(value))


def _one_form_only(data: bytes) -> None:
    try:
        value = canonical.decode(data)
    except NotCanonical:
        return
    assert canonical.encode(value) == data


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_encode_back(data: bytes) -> None:
    _one_form_only(data)


@given(_nested(_WHOLE | _FLOATS), st.data())
def test_damaged_bytes_are_refused_or_encode_back(value: Any, data: st.DataObject) -> None:
    encoded = canonical.encode(value)
    at = data.draw(st.integers(0, len(encoded) - 1))
    patch = data.draw(st.binary(max_size=3))
    removed = data.draw(st.integers(0, 3))
    _one_form_only(encoded[:at] + patch + encoded[at + removed :])


@given(_nested(_WHOLE | _FLOATS), st.data())
def test_no_encoding_is_a_prefix_of_another(value: Any, data: st.DataObject) -> None:
    encoded = canonical.encode(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for damaged in (encoded[:cut], encoded + b"\x00"):
        try:
            canonical.decode(damaged)
        except NotCanonical:
            continue
        raise AssertionError("a truncated or extended encoding was read")


@given(st.lists(_WHOLE | _FLOATS | st.just([]) | st.just({}), max_size=7), st.integers(0, 8))
def test_a_record_is_a_short_list_without_lists_and_maps(value: list[Any], most: int) -> None:
    data = canonical.encode(value)
    if len(value) <= most and not any(isinstance(item, list | dict) for item in value):
        assert repr(canonical.decode_record(data, most)) == repr(canonical.decode(data))
    else:
        with pytest.raises(NotCanonical):
            canonical.decode_record(data, most)


@given(st.binary(max_size=40))
def test_a_record_has_one_form_only(data: bytes) -> None:
    try:
        record = canonical.decode_record(data, 5)
    except NotCanonical:
        return
    assert canonical.encode(record) == data
    assert len(record) <= 5
