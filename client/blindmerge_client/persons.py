"""Whose examples are whose: the column `person` of an owner's file."""

from dataclasses import replace
from pathlib import Path

from blindmerge.errors import DataInvalid
from blindmerge.tasks import Task
from blindmerge_client.data import SUFFIXES
from blindmerge_client.tasks import TASKS, Row

__all__ = ["read_persons"]

_COLUMN = "person"


def read_persons(path: Path, task: Task) -> tuple[str, ...] | None:
    """The person of every example, in the order of `read_examples`; None without such a column.

    A person is a string or a whole number. Raises DataInvalid, which quotes none, for a row
    without one where the first row has one.
    """
    read = next(SUFFIXES[end] for end in SUFFIXES if path.name.lower().endswith(end))
    form = TASKS[task].form
    bare = replace(form, columns=(_COLUMN,), csv=_as_they_are if form.csv else None)
    persons: list[str] = []
    try:
        for fields in read(path, bare):
            persons.append(_person(fields[_COLUMN], f"'{path}' row {len(persons) + 1}"))
    except DataInvalid as error:
        if not persons and error.message.endswith(f"has no '{_COLUMN}'"):
            return None
        raise
    return tuple(persons)


def _as_they_are(fields: Row) -> Row:
    return fields


def _person(value: object, where: str) -> str:
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataInvalid(
            f"{where}: the person is empty, or neither a text nor a whole number",
            hint="every example needs the one whose it is",
        )
    return value
