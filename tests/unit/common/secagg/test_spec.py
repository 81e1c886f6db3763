"""SPEC.md is true: its diagrams, its table of thresholds, its list of attacks."""

import re
from pathlib import Path

import pytest

import blindmerge.secagg
from blindmerge.errors import ProtocolBroken
from blindmerge.secagg.graph import log2_disconnected, quorum, regular_parameters
from blindmerge.secagg.messages import KINDS
from blindmerge.secagg.transitions import OWNER, SERVER, mermaid, next_state
from blindmerge_client.states import STATES as OWNER_STATES
from blindmerge_server.states import STATES as SERVER_STATES

SPEC = (Path(str(blindmerge.secagg.__file__)).parent / "SPEC.md").read_text("utf-8")
ATTACKS = Path(__file__).parents[3] / "attacks"


def test_the_diagrams_are_drawn_from_the_tables() -> None:
    diagrams = re.findall(r"```mermaid\n(.*?)\n```", SPEC, flags=re.DOTALL)
    assert diagrams == [mermaid(OWNER), mermaid(SERVER)]


def test_tables_and_machines_have_the_same_states_and_messages() -> None:
    assert {row.target for row in OWNER} == OWNER_STATES.keys()
    assert {row.source for row in OWNER} | {"revealed"} == OWNER_STATES.keys() | {"idle"}
    assert {row.source for row in SERVER} | {row.target for row in SERVER} == SERVER_STATES.keys()
    events = {row.event for row in (*OWNER, *SERVER)}
    assert events == {*KINDS, "own input", "close"}


def test_what_has_no_row_is_refused() -> None:
    assert next_state(OWNER, "idle", "propose") == "advertised"
    rows = {(row.source, row.event) for row in OWNER}
    for state in ("idle", *OWNER_STATES):
        for kind in KINDS:
            if (state, kind) not in rows:
                with pytest.raises(ProtocolBroken, match=kind):
                    next_state(OWNER, state, kind)


def test_every_line_of_the_threat_model_is_a_test_and_every_test_a_line() -> None:
    named = re.findall(r"\| `(test_\w+\.py)` \|", SPEC)
    assert len(named) == len(set(named))
    for name in named:
        assert "def test_" in (ATTACKS / name).read_text("utf-8")
    ours = {
        path.name
        for path in ATTACKS.glob("test_*.py")
        if "support.secure_sum" in path.read_text("utf-8")
    }
    assert ours <= set(named)


def test_the_table_of_the_sparse_graph_is_computed() -> None:
    rows = re.findall(r"\| ([\d,]+) \| (\d+) \| (\d+) \| ([\d,]+) \| (-\d+) \|", SPEC)
    assert len(rows) == 4
    for row in rows:
        owners, holders, threshold, signers, chance = (int(cell.replace(",", "")) for cell in row)
        tenth = owners // 10
        assert regular_parameters(owners, tenth, tenth) == (holders, threshold)
        assert quorum(owners, tenth) == signers
        assert round(log2_disconnected(owners, tenth, holders, threshold)) == chance


def test_every_step_that_code_cites_exists() -> None:
    steps = {
        f"{section}.{number}"
        for section, body in re.findall(r"\*\*(R\d) [^*]+\*\*\n(.*?)(?=\n\n|\Z)", SPEC, re.DOTALL)
        for number in re.findall(r"^(\d)\. ", body, re.MULTILINE)
    }
    root = Path(__file__).parents[4]
    cited = {
        step
        for package in ("common", "client", "server")
        for path in (root / package).rglob("*.py")
        for step in re.findall(r"\bR\d\.\d\b", path.read_text("utf-8"))
    }
    assert cited
    assert cited <= steps
