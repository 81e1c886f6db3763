"""report.json: documented, current, whole or not there."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from blindmerge.errors import ResourceMissing
from blindmerge_server.report import schema
from blindmerge_server.report.schema import (
    MASKS_OFF,
    MASKS_ON,
    DataScore,
    Report,
    SystemScores,
    report_json_schema,
    write_report,
)
from support.reports import LONG_NAMES, make_report

SCHEMA_FILE = Path(schema.__file__).with_name("report.schema.json")


def test_the_shipped_schema_is_current() -> None:
    expected = json.dumps(report_json_schema(), indent=2) + "\n"
    assert SCHEMA_FILE.read_text() == expected, "write report_json_schema() to the file again"


def test_every_field_is_described() -> None:
    document = report_json_schema()
    tables = {"Report": document} | document["$defs"]
    tables.pop("JsonValue")  # any JSON at all
    assert len(tables) == 15
    for name, table in tables.items():
        assert table["description"], name
        for field, content in table["properties"].items():
            assert content.get("description"), f"{name}.{field}"


def test_a_report_keeps_the_schema_by_a_second_implementation() -> None:
    document = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    checker = jsonschema.Draft202012Validator(document)
    report = make_report(LONG_NAMES, missing="films", starved=True)
    checker.validate(report.model_dump(mode="json"))
    broken = report.model_dump(mode="json") | {"schema_version": 1}
    assert not checker.is_valid(broken)


def test_the_first_fields_say_what_the_server_saw() -> None:
    for masked, words in (
        (True, MASKS_ON.format(least=3)),
        (False, MASKS_OFF),
    ):
        dumped = make_report(("a", "b", "c", "d"), masked=masked).model_dump(mode="json")
        assert list(dumped)[:2] == ["masks", "protection"]
        assert dumped["masks"] is masked
        assert dumped["protection"] == words
        assert (dumped["job"]["masks"] is None) is not masked


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    report = make_report(("a", "b"), missing="b", starved=True)
    path = tmp_path / "report.json"
    write_report(report, path)
    assert Report.model_validate_json(path.read_bytes()) == report


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(make_report(("a", "b", "c")), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_mean_counts_every_test_set_the_same() -> None:
    rng = np.random.default_rng(1)
    pairs = rng.uniform(size=(5, 2))
    scores = [
        DataScore(data=f"owner-{n}", metrics={"accuracy": float(a), "f1": float(f)}, examples=10**n)
        for n, (a, f) in enumerate(pairs)
    ]
    mean = SystemScores.of("average", "merged", "simple average", scores).mean
    # Five additions and a division, each within 2^-53 of numbers below 5.
    np.testing.assert_allclose((mean["accuracy"], mean["f1"]), pairs.mean(axis=0), atol=5 * 2**-51)


def test_scores_of_other_owners_are_refused() -> None:
    report, other = make_report(("a", "b")), make_report(("b", "a"))
    mixed = report.model_copy(update={"scores": other.scores}).model_dump()
    with pytest.raises(ValidationError, match="not on the owners' test data, in their order"):
        Report.model_validate(mixed)


def test_systems_scored_on_different_data_are_refused() -> None:
    report = make_report(("a", "b"))
    one, *rest = report.scores
    short = SystemScores.of(one.system, one.kind, one.name, one.scores[:1])
    mixed = report.model_copy(update={"scores": (short, *rest)}).model_dump()
    with pytest.raises(ValidationError, match="are on other data"):
        Report.model_validate(mixed)


def test_an_owner_without_a_model_has_no_scores() -> None:
    report, fewer = make_report(("a", "b", "c")), make_report(("a", "c"))
    dumped = report.model_copy(update={"scores": fewer.scores}).model_dump()
    assert Report.model_validate(dumped).scored == ("a", "c")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sums",), ()),
        (("layers",), ()),
        (("seconds", "methods"), 1.0),
        (("seconds", "exchanges"), {}),
        (("owners", 0, "bytes_sent"), 1),
    ],
)
def test_a_method_that_the_job_does_not_know_is_refused(
    path: tuple[str | int, ...], value: object
) -> None:
    dumped = make_report(("a", "b")).model_dump()
    table: Any = dumped
    for key in path:
        table = table[key]
    table["ties"] = value
    with pytest.raises(ValidationError, match="'ties' is not the id of a method of the job"):
        Report.model_validate(dumped)


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceMissing, match="the disk is full") as caught:
        write_report(make_report(("a", "b")), path)
    assert "space" in caught.value.hint
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "write_text", refused)
    path = tmp_path / "report.json"
    with pytest.raises(ResourceMissing, match="permission denied"):
        write_report(make_report(("a", "b")), path)
    assert not path.exists()
