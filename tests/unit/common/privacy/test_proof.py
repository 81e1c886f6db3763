"""PROOF.md is true where it can be computed, and the code cites steps that exist."""

import re
from pathlib import Path

import pytest

import blindmerge.privacy
from blindmerge.privacy.accountant import multiplier_for
from blindmerge.privacy.mechanism import LONGEST, MOST_UNITS, WIDEST
from blindmerge.privacy.sampler import LARGEST_VARIANCE

FOLDER = Path(str(blindmerge.privacy.__file__)).parent
PROOF = (FOLDER / "PROOF.md").read_text("utf-8")


def _steps() -> set[str]:
    """§a and §a.b of all headings and numbered lines."""
    steps, section = set(), ""
    for line in PROOF.splitlines():
        if found := re.match(r"## (\d+)\.", line):
            section = found[1]
            steps.add(section)
        elif found := re.match(r"(\d+)\. ", line):
            steps.add(f"{section}.{found[1]}")
    return steps


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_cited_steps_exist(path: Path) -> None:
    cited = set(re.findall(r"§(\d+(?:\.\d+)?)", path.read_text("utf-8")))
    assert cited <= _steps()
    assert cited or path.name == "__init__.py"


def test_steps_cited_within_the_proof_exist() -> None:
    assert set(re.findall(r"§(\d+(?:\.\d+)?)", PROOF)) <= _steps()


def test_the_table_of_multipliers_is_computed() -> None:
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", PROOF)
    assert len(rows) == 5
    for epsilon, multiplier, _ in rows:
        digits = len(multiplier.partition(".")[2])
        assert f"{multiplier_for(float(epsilon), 1e-6):.{digits}f}" == multiplier


def test_constants_are_those_of_the_proof() -> None:
    assert (LONGEST, WIDEST, MOST_UNITS) == (1 << 14, 1 << 15, 1 << 24)
    assert LARGEST_VARIANCE == (1 << 50) ** 2
    # §4.3, §4.4: 2^15 products of integers of 20 bits with sign; a sum of units in int64.
    assert (1 << 15) * ((1 << 19) - 1) ** 2 < 1 << 53
    assert MOST_UNITS * ((1 << 19) - 1) ** 2 < 1 << 62
