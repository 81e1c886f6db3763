"""The command: what it prints, where, and how it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from blindmerge import cli, errors
from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import BlindmergeError, ResourceMissing
from support.jobs import LABELS
from support.pico import Architecture, pico_encoder

ARCHITECTURES: tuple[Architecture, ...] = ("bert", "roberta", "distilbert")


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`main` sets variables, a signal's handler and commands; tests get theirs back."""
    for name in cli._ENVIRONMENT:
        monkeypatch.setenv(name, "set by the test")
    monkeypatch.setenv("COLUMNS", "80")
    handler = signal.getsignal(signal.SIGTERM)
    commands = list(cli.app.registered_commands)
    yield
    signal.signal(signal.SIGTERM, handler)
    cli.app.registered_commands[:] = commands


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["blindmerge", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    code = raised.value.code
    assert code is None or isinstance(code, int)
    return code or 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_inspect_prints_every_tensor_with_its_rule(
    architecture: Architecture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = Checkpoint(pico_encoder(tmp_path / "model", architecture, labels=LABELS))
    assert run(monkeypatch, "inspect", checkpoint.path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    shown, block = {}, ""
    for line in map(str.rstrip, lines[1:-2]):
        if not line.startswith(" "):
            block = line
            continue
        row = re.fullmatch(r"  (\S+) +(\d+(?: x \d+)?)  (average|Gram \d+, \w+|  same)", line)
        assert row, line
        inside = block not in ("embeddings", "head")
        shown[f"{block}.{row[1]}" if inside else row[1]] = row[2]
    assert shown == {name: " x ".join(map(str, shape)) for name, shape in checkpoint.shapes.items()}
    # Rules: what is no matrix of a linear layer is averaged; q, k and v are one Gram matrix.
    assert sum(line.endswith("average") for line in map(str.rstrip, lines)) == sum(
        "mbeddings" in name or "norm" in name.lower() for name in checkpoint.shapes
    )
    assert sum("Gram" in line for line in lines) == 2 * 4 + 2
    assert f"content hash {checkpoint.sha256}" in out
    numbers = sum(array.size for array in checkpoint.read(checkpoint.shapes).values())
    assert f"{len(checkpoint.shapes)} tensors, {numbers:,} numbers, 4 phases" in out


def test_inspect_shows_experts_that_are_alike_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pico_encoder(tmp_path / "model", "mixtral", labels=LABELS)
    assert run(monkeypatch, "inspect", folder) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    found = [" ".join(line.split()) for line in lines if "expert" in line]
    one_layer = [
        "block_sparse_moe.experts.0.w1.weight 32 x 16 Gram 16, routed-tokens",
        "block_sparse_moe.experts.0.w3.weight 32 x 16 same",
        "and 2 more experts one each",
        "block_sparse_moe.experts.0.w2.weight 16 x 32 Gram 32, routed-activations",
        "and 2 more experts one each",
    ]
    assert found == 2 * one_layer


def test_an_error_is_explained_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "inspect", tmp_path / "nothing") == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"blindmerge: error: '{tmp_path / 'nothing' / 'config.json'}' is missing\n"
        "blindmerge: hint: a checkpoint is a folder written by transformers' `save_pretrained`\n"
    )


KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
@pytest.mark.parametrize("hint", ["", "do that"])
def test_every_kind_of_error_ends_with_its_code(
    kind: type[BlindmergeError],
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_path: Path) -> None:
        raise kind("this is wrong", hint=hint)

    monkeypatch.setattr(cli, "Checkpoint", fail)
    assert run(monkeypatch, "inspect", "x") == kind.exit_code
    expected = "blindmerge: error: this is wrong\n"
    assert capsys.readouterr().err == expected + (f"blindmerge: hint: {hint}\n" if hint else "")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), typer.Abort()])
def test_whoever_stops_it_gets_130(
    stop: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_path: Path) -> None:
        raise stop

    monkeypatch.setattr(cli, "Checkpoint", stopped)
    assert run(monkeypatch, "inspect", "x") == 130
    assert capsys.readouterr().err == "blindmerge: error: stopped\n"


def test_sigterm_stops_it_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "Checkpoint", lambda _path: signal.raise_signal(signal.SIGTERM))
    assert run(monkeypatch, "inspect", "x") == 130
    assert capsys.readouterr().err == "blindmerge: error: stopped\n"


def test_files_that_cannot_be_used_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "Checkpoint", lambda _path: Path("/dev/null/x").mkdir())
    assert run(monkeypatch, "inspect", "x") == ResourceMissing.exit_code
    assert capsys.readouterr().err == "blindmerge: error: '/dev/null/x': Not a directory\n"


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_path: Path) -> None:
        raise OSError("no file in sight")

    monkeypatch.setattr(cli, "Checkpoint", bug)
    monkeypatch.setattr(sys, "argv", ["blindmerge", "inspect", "x"])
    with pytest.raises(OSError, match="no file in sight"):
        cli.main()


@pytest.mark.parametrize(
    ("arguments", "words", "command"),
    [
        (["--nonsense"], "No such option '--nonsense'", "blindmerge"),
        (["nonsense"], "No such command 'nonsense'", "blindmerge"),
        (["inspect"], "Missing argument 'MODEL'", "blindmerge inspect"),
        (["inspect", "a", "b"], "unexpected extra argument", "blindmerge inspect"),
        (["inspect", "--nonsense"], "No such option '--nonsense'", "blindmerge inspect"),
        (["simulate", "--outt", "x"], "No such option '--outt'", "blindmerge simulate"),
    ],
)
def test_a_slip_of_the_keyboard_ends_with_2(
    arguments: list[str],
    words: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, hint = err.splitlines()
    assert first.startswith("blindmerge: error: ")
    assert words in first
    assert hint == f"blindmerge: hint: see `{command} --help`"


def test_without_a_command_it_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: blindmerge" in err
    assert "inspect" in err
    assert "error" not in err


def test_help_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ("--help", "inspect --help", "simulate --help", "client train --help"):
        assert run(monkeypatch, *words.split()) == 0
        out, err = capsys.readouterr()
        assert "Usage: blindmerge" in out
        assert "\\" not in out  # no escapes of a markup that nobody shows
        assert err == ""


HEAVY = ("torch", "transformers", "flwr", "ray", "matplotlib", "pyarrow", "sklearn", "pandas")


def test_help_waits_for_nothing_heavy() -> None:
    # In a new process, which tells what it has imported when it ends.
    code = (
        "import sys\nfrom blindmerge import cli\nsys.argv = ['blindmerge', '--help']\n"
        "try:\n    cli.main()\n"
        f"finally:\n    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines()[-1] == "[]"
    assert "Usage: blindmerge" in ended.stdout


def test_nothing_may_wait_for_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cli._ENVIRONMENT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run(monkeypatch, "--help")
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    # What a person has set stays.
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
