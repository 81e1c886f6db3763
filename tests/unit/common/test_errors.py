"""The tree of errors is the one that its docstring draws."""

import copy
import pickle
import re

import pytest

from blindmerge import errors
from blindmerge.errors import BlindmergeError

CLASSES = [getattr(errors, name) for name in errors.__all__]


def _drawn() -> dict[str, tuple[int | None, int]]:
    """Name -> (exit code if drawn, column) of every line of the docstring's tree."""
    assert errors.__doc__ is not None
    lines = re.findall(r"^([ │├└─]*)(\w+)(?: +exit (\d+))?", errors.__doc__, re.MULTILINE)
    known = set(errors.__all__)
    return {
        n: (int(code) if code else None, len(indent)) for indent, n, code in lines if n in known
    }


def test_docstring_draws_every_class() -> None:
    assert _drawn().keys() == set(errors.__all__)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_drawn_exit_code_and_parent_are_real(kind: type[BlindmergeError]) -> None:
    drawn = _drawn()
    code, column = drawn[kind.__name__]
    if code is not None:
        assert kind.exit_code == code
    if kind is BlindmergeError:
        return
    above = list(drawn)[: list(drawn).index(kind.__name__)]
    parent = next(name for name in reversed(above) if drawn[name][1] < column)
    assert kind.__bases__ == (getattr(errors, parent),)


def test_kinds_have_different_exit_codes() -> None:
    codes = [kind.exit_code for kind in BlindmergeError.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert not {0, 1} & set(codes), "0 is success, 1 an unforeseen error"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_message_and_hint_survive_pickling(kind: type[BlindmergeError]) -> None:
    error = kind("what is wrong", hint="what to do")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(twin) is kind
        assert (twin.message, twin.hint, str(twin)) == ("what is wrong", "what to do", str(error))
    assert kind("alone").hint == ""
