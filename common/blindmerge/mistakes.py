"""Validation errors of a TOML file, in the words of a person.

pydantic finds every mistake of a file; this module says each as `key: what is wrong; what is
allowed`. It knows no file: what it needs are the errors and the keys that each table takes.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from blindmerge.merge import METHODS

__all__ = ["Tables", "explain", "listed", "owner_key", "owner_names", "shown"]

Tables: TypeAlias = Mapping[str, type[BaseModel]]
"""The model behind each table of the file, by dotted key without indices; "" is the file."""

_Location: TypeAlias = tuple[str | int, ...]

_OPTIONS = {
    name: list(type(method).model_fields)
    for name, method in METHODS.items()
    if isinstance(method, BaseModel)
}
_QUOTE = "'"


def explain(error: ErrorDetails, raw: Mapping[str, object], tables: Tables) -> str:
    """One line: the dotted key, what is wrong with it and what is allowed.

    error: one of `ValidationError.errors()`.   raw: the file as parsed.
    """
    location = _without_tags(error["loc"])
    kind = error["type"]
    if kind == "missing":
        text = _missing(location, tables)
    elif kind == "extra_forbidden":
        text = _unknown(location, error["loc"], tables)
    elif kind == "value_error":
        text = str(error["ctx"]["error"])
    elif kind in _PHRASES:
        text = _PHRASES[kind](error["input"], error.get("ctx", {}))
    else:
        text = f"{shown(error['input'])} is not allowed: {error['msg']}"
    return f"{_dotted(location, raw)}: {text}"


def shown(value: object) -> str:
    """A value as it stands in TOML, cut to 40 characters; tables and lists by kind."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + '..."'


def listed(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _did_you_mean(name: object, known: Sequence[str]) -> str:
    """The nearest known name, or all of them if none is near."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"


def _without_tags(location: _Location) -> _Location:
    """The location without the union tags that pydantic puts between `method` and its keys."""
    kept: list[str | int] = []
    for index, part in enumerate(location):
        before = location[index - 1] if index else ""
        in_compare = index > 1 and location[index - 2] == "compare" and isinstance(before, int)
        if part in METHODS and (before == "method" or in_compare):
            continue
        kept.append(part)
    return tuple(kept)


def _dotted(location: _Location, raw: Mapping[str, object]) -> str:
    """`job.method.ridge`; an owner by its name, or by its number (from 1) if it has none."""
    parts: list[str] = []
    for index, part in enumerate(location):
        if not isinstance(part, int):
            parts.append(part)
        elif location[index - 1] == "owner":
            parts[-1] = owner_key(raw.get("owner"), part)
        else:
            parts[-1] += f"[{part + 1}]"
    return ".".join(parts) if parts else "the file"


def owner_key(owners: object, index: int) -> str:
    """`owner.films`, or `owner #3` if the third owner has no name of its own.

    owners: the value of `owner` as parsed, whatever it is.   index: from 0.
    """
    names = owner_names(owners)
    name = names[index] if index < len(names) else None
    own = isinstance(name, str) and name and names.count(name) == 1
    return f"owner.{name}" if own else f"owner #{index + 1}"


def owner_names(owners: object) -> list[object]:
    """The `name` of every owner as parsed; None where there is none."""
    if not isinstance(owners, list | tuple):
        return []
    return [owner.get("name") if isinstance(owner, Mapping) else None for owner in owners]


def _missing(location: _Location, tables: Tables) -> str:
    table = ".".join(part for part in location[:-1] if isinstance(part, str))
    fields = tables[table].model_fields if table in tables else {}
    for name, field in fields.items():
        if location[-1] == (field.alias or name) and field.description:
            return f"is missing; give {field.description}"
    return "is missing"


def _unknown(location: _Location, tagged: _Location, tables: Tables) -> str:
    """An unknown key; `tagged` still holds the method's name."""
    table = ".".join(part for part in location[:-1] if isinstance(part, str))
    if table in tables:
        fields = tables[table].model_fields
        known = [field.alias or name for name, field in fields.items()]
    else:
        method = next(part for part in reversed(tagged) if part in METHODS)
        known = _OPTIONS[str(method)]
    return f"is not a key of this table; {_did_you_mean(location[-1], known)}"


def _method(given: object, _: Mapping[str, Any]) -> str:
    name = given.get("name") if isinstance(given, Mapping) else given
    if name is None:
        return f"names no method; add name = {_one_of(sorted(METHODS))}"
    return f"{shown(name)} is not a merge method; {_did_you_mean(name, sorted(METHODS))}"


def _one_of(names: Sequence[str]) -> str:
    return listed([f'"{name}"' for name in names])


def _must_be(what: str) -> Callable[[object, Mapping[str, Any]], str]:
    return lambda given, _: f"{shown(given)} is not {what}"


def _bound(word: str, key: str) -> Callable[[object, Mapping[str, Any]], str]:
    return lambda given, context: f"{shown(given)} is out of range; {word} {context[key]:.10g}"


_PHRASES: Mapping[str, Callable[[object, Mapping[str, Any]], str]] = {
    "bool_type": _must_be("true or false"),
    "finite_number": _must_be("a finite number"),
    "float_type": _must_be("a number"),
    "int_from_float": _must_be("a whole number"),
    "int_type": _must_be("a whole number"),
    "string_type": _must_be("a text in quotes"),
    "tuple_type": _must_be("a list in square brackets"),
    "dataclass_type": _must_be("a table"),
    "date_type": _must_be("a date such as 2027-01-31"),
    "dict_type": _must_be("a table"),
    "model_type": _must_be("a table"),
    "model_attributes_type": _must_be("a table, nor the name of a method"),
    "greater_than": _bound("it must be above", "gt"),
    "greater_than_equal": _bound("it must be at least", "ge"),
    "less_than": _bound("it must be below", "lt"),
    "less_than_equal": _bound("it must be at most", "le"),
    "literal_error": lambda given, context: (
        f"{shown(given)} is not allowed; choose {str(context['expected']).replace(_QUOTE, chr(34))}"
    ),
    "union_tag_invalid": _method,
    "union_tag_not_found": _method,
}
"""How each kind of pydantic error reads."""
