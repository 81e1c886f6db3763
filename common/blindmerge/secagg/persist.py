"""States of the machines as canonical bytes, and back (SPEC §9).

A state is a frozen dataclass of: int, str, bytes, bool, None, Secret, SumManifest, other such
dataclasses, tuples, and dicts with int or str keys. It becomes the list of its fields; the
types of the fields, not the bytes, say what is read back.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from blindmerge import canonical
from blindmerge.errors import BlindmergeError, JobAborted
from blindmerge.secagg.manifest import SumManifest
from blindmerge.secagg.secret import Secret

__all__ = ["dump", "load"]

_State = TypeVar("_State")
_CHECKSUM_BYTES = 32
_SEATS = ">i8"  # tuples of seats are long, and packed as bytes


def dump(state: object) -> bytes:
    """A checksum and the canonical bytes of a state.

    They hold its secrets: store them with mode 0600.
    """
    data = canonical.encode(_pack(state))
    return hashlib.sha256(data).digest() + data


def load(kind: type[_State], data: bytes) -> _State:
    """The state of type `kind` with these bytes.

    Raises JobAborted for a damaged file: what it should have prevented is unknown.
    """
    checksum, content = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    try:
        if hashlib.sha256(content).digest() != checksum:
            raise ValueError("the checksum is another")
        state = _unpack(canonical.decode(content), kind)
    except (BlindmergeError, TypeError, ValueError) as error:
        raise JobAborted(
            "the saved state of a secure sum cannot be read",
            hint="this owner must leave the job; it may join the next one",
        ) from error
    return state  # type: ignore[no-any-return]


def _pack(value: Any) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, SumManifest):
        return value.encoded
    if is_dataclass(value):
        return [_pack(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return [[_pack(key), _pack(value[key])] for key in sorted(value)]
    if isinstance(value, tuple):
        if value and all(type(item) is int for item in value):
            return np.array(value, dtype=_SEATS).tobytes()
        return [_pack(item) for item in value]
    return value


def _unpack(value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _unpack_union(value, get_args(kind))
    if kind is Secret:
        return Secret(value)
    if kind is SumManifest:
        return SumManifest.decode(value)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        names = [field.name for field in fields(kind)]
        return kind(**{n: _unpack(v, hints[n]) for n, v in zip(names, value, strict=True)})
    if origin in (dict, Mapping):
        key_kind, item_kind = get_args(kind)
        return {_unpack(key, key_kind): _unpack(item, item_kind) for key, item in value}
    if origin is tuple:
        kinds = get_args(kind)
        if kinds == (int, Ellipsis) and type(value) is bytes:
            return tuple(np.frombuffer(value, dtype=_SEATS).tolist())
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            return tuple(_unpack(item, kinds[0]) for item in value)
        return tuple(_unpack(item, k) for item, k in zip(value, kinds, strict=True))
    if type(value) is not kind:
        raise TypeError(f"a saved field is {type(value).__name__}, not {kind.__name__}")
    return value


def _unpack_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Unions are `T | None` only; states of different kinds are kept apart by their names."""
    if value is None and NoneType in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    return _unpack(value, kind)
