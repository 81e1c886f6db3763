"""One encoding per value: a small subset of deterministic CBOR (RFC 8949, section 4.2).

Values: None, bool, int (-2^64 to 2^64 - 1), float (finite, always 8 bytes), str, bytes, list
or tuple, and dict with str keys, nested at most 32 deep. Lengths come first and are minimal,
keys are sorted by their encoded bytes, nothing is indefinite. `decode` refuses every other
encoding, so bytes that decode also encode back to themselves; what is hashed or signed has
one form only.

Own code, not a library: general CBOR decoders accept tags, indefinite lengths and
several encodings of one value. The tests compare it with `cbor2`.
"""

import math
import struct
from collections.abc import Mapping
from typing import TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from blindmerge.errors import NotCanonical, PeerInvalid

__all__ = ["Value", "decode", "decode_as", "decode_record", "encode", "tuples"]

Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[str, Value] | None"

_UINT, _NINT, _BYTES, _TEXT, _LIST, _MAP, _TAG, _SIMPLE = range(8)
_FALSE, _TRUE, _NULL, _FLOAT64 = 20, 21, 22, 27
_MAX_DEPTH = 32


def encode(value: object) -> bytes:
    """The canonical bytes of `value`.

    Raises NotCanonical for a type, number, text or key outside the subset, or nesting
    deeper than 32.
    """
    out: list[bytes] = []  # joined once: a masked block of megabytes is copied once
    _write(out, value, 0)
    return b"".join(out)


def decode(data: bytes) -> Value:
    """The value whose canonical bytes are `data`.

    Raises NotCanonical if `data` is truncated, longer than one value, nested deeper
    than 32, or not the canonical encoding. Memory is bounded by the length of `data` (about
    a hundred bytes for each of its bytes), whatever lengths it claims.
    """
    value, end = _read(data, 0, 0)
    if end != len(data):
        raise NotCanonical(f"{len(data) - end} bytes follow the encoded value")
    return value


def decode_record(data: bytes, most: int) -> list[Value]:
    """The list of at most `most` values, no lists or maps among them, with these canonical bytes.

    For what comes from others before it is known to be wanted: beyond its strings it takes no
    memory.   Raises NotCanonical for anything else.
    """
    major, _, count, at = _read_head(data, 0)
    if major != _LIST or count > most:
        raise NotCanonical(f"not a list of at most {most} values")
    record: list[Value] = []
    for _ in range(count):
        if at < len(data) and data[at] >> 5 in (_LIST, _MAP):
            raise NotCanonical("a list or map within a list of plain values")
        value, at = _read(data, at, 1)
        record.append(value)
    if at != len(data):
        raise NotCanonical(f"{len(data) - at} bytes follow the encoded value")
    return record


_Model = TypeVar("_Model", bound=BaseModel)


def decode_as(kind: type[_Model], data: bytes, what: str) -> _Model:
    """The model of type `kind` with these canonical bytes.   what: its name in messages.

    Raises NotCanonical or PeerInvalid; bytes that decode encode back to themselves.
    """
    value = decode(data)
    try:
        model = kind.model_validate(tuples(value))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # A peer chose these names: no control characters on a person's terminal.
        where = ascii(".".join(str(part) for part in first["loc"]))[:100]
        raise PeerInvalid(f"{what} is invalid at {where}: {first['msg']}") from error
    if encode(model.model_dump()) != data:
        raise PeerInvalid(f"a field of {what} is left out, or a number has another type")
    return model


def _write_head(out: list[bytes], major: int, argument: int) -> None:
    if argument < 24:
        out.append(bytes([major << 5 | argument]))
        return
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            out.append(bytes([major << 5 | info]) + argument.to_bytes(size, "big"))
            return
    raise NotCanonical("an integer or length needs more than 64 bits")


def _write(out: list[bytes], value: object, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise NotCanonical(f"nested deeper than {_MAX_DEPTH}")
    if value is None:
        out.append(bytes([_SIMPLE << 5 | _NULL]))
    elif type(value) is bool:
        out.append(bytes([_SIMPLE << 5 | (_TRUE if value else _FALSE)]))
    elif type(value) is int:
        _write_head(out, _NINT if value < 0 else _UINT, -1 - value if value < 0 else value)
    elif type(value) is float:
        _write_float(out, value)
    elif type(value) is str:
        _write_text(out, value)
    elif type(value) is bytes:
        _write_head(out, _BYTES, len(value))
        out.append(value)
    elif isinstance(value, (list, tuple)):
        _write_head(out, _LIST, len(value))
        for item in value:
            _write(out, item, depth + 1)
    elif isinstance(value, Mapping):
        _write_map(out, value, depth)
    else:
        raise NotCanonical(f"{type(value).__name__} has no canonical encoding")


def _write_text(out: list[bytes], value: str) -> None:
    try:
        text = value.encode("utf-8")
    except UnicodeEncodeError:
        # Not `from error`: that exception carries the text.
        raise NotCanonical("text with a lone surrogate has no canonical encoding") from None
    _write_head(out, _TEXT, len(text))
    out.append(text)


def _write_float(out: list[bytes], value: float) -> None:
    if not math.isfinite(value):
        raise NotCanonical("NaN and infinity have no canonical encoding")
    # -0.0 equals 0.0, and equal values need equal bytes.
    out.append(bytes([_SIMPLE << 5 | _FLOAT64]) + struct.pack(">d", value + 0.0))


def _write_map(out: list[bytes], value: Mapping[object, object], depth: int) -> None:
    if any(type(key) is not str for key in value):
        raise NotCanonical("map keys must be text")
    _write_head(out, _MAP, len(value))
    for key, item in sorted((encode(key), item) for key, item in value.items()):
        out.append(key)
        _write(out, item, depth + 1)


def _read_head(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Major type, additional information, argument, and where the content starts."""
    if at >= len(data):
        raise NotCanonical("the encoded value is truncated")
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if info < 24:
        return major, info, info, at
    if info > 27:
        raise NotCanonical("indefinite lengths are not canonical")
    size = 1 << (info - 24)
    if at + size > len(data):
        raise NotCanonical("the encoded value is truncated")
    argument = int.from_bytes(data[at : at + size], "big")
    smallest = {1: 24, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}[size]
    if major != _SIMPLE and argument < smallest:
        raise NotCanonical("a length or integer is not in its shortest form")
    return major, info, argument, at + size


def _read(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if depth > _MAX_DEPTH:
        raise NotCanonical(f"nested deeper than {_MAX_DEPTH}")
    major, info, argument, at = _read_head(data, at)
    if major == _UINT:
        return argument, at
    if major == _NINT:
        return -1 - argument, at
    if major == _SIMPLE:
        return _simple(info, argument), at
    if major == _TAG:
        raise NotCanonical("tags are not canonical")
    # Every element takes at least one byte: nothing is allocated for a lie.
    if argument > len(data) - at:
        raise NotCanonical("a length exceeds the bytes that are there")
    if major == _BYTES:
        return data[at : at + argument], at + argument
    if major == _TEXT:
        return _text(data[at : at + argument]), at + argument
    if major == _LIST:
        items: list[Value] = []
        for _ in range(argument):
            item, at = _read(data, at, depth + 1)
            items.append(item)
        return items, at
    return _read_map(data, at, argument, depth)


def _read_map(data: bytes, at: int, size: int, depth: int) -> tuple[Value, int]:
    entries: dict[str, Value] = {}
    previous = b""
    for _ in range(size):
        start = at
        key, at = _read(data, at, depth + 1)
        if type(key) is not str:
            raise NotCanonical("map keys must be text")
        if data[start:at] <= previous:
            raise NotCanonical("map keys are not sorted, or one occurs twice")
        previous = data[start:at]
        entries[key], at = _read(data, at, depth + 1)
    return entries, at


def _simple(info: int, argument: int) -> bool | float | None:
    if info in (_FALSE, _TRUE):
        return info == _TRUE
    if info == _NULL:
        return None
    if info == _FLOAT64:
        number: float = struct.unpack(">d", argument.to_bytes(8, "big"))[0]
        if not math.isfinite(number) or (number == 0 and argument != 0):
            raise NotCanonical("NaN, infinity and negative zero are not canonical")
        return number
    raise NotCanonical("an unknown simple value")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotCanonical("text is not UTF-8") from error


def tuples(value: object) -> object:
    """The value with tuples for its lists, which strict frozen models want."""
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return value
