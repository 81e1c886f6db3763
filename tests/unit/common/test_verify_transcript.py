"""`blindmerge verify-transcript`: what it prints, and what it does not believe."""

from dataclasses import replace
from pathlib import Path

import pytest

from blindmerge import cli
from blindmerge.errors import (
    BlindmergeError,
    ConfigInvalid,
    PeerInvalid,
    ProtocolBroken,
    SignatureInvalid,
    TooFewOwners,
)
from blindmerge.identity import Identity, Roster
from blindmerge.secagg.secret import Secret
from blindmerge.secagg.transcript import Transcript, statement
from support.command import blindmerge
from support.secure_sum import BASE, PLAN, federation, manifest_for


def _transcript() -> Transcript:
    # Of nine owners one is gone in each round; 6 must stay.
    owners = federation(9)
    owners.gone = {1: "R0", 4: "R2", 8: "R3"}
    return owners.run(manifest_for(owners.roster, phases=3, attempt=1)).transcript


TRANSCRIPT = _transcript()
PINNED = TRANSCRIPT.roster.sha256.hex()


def verify(file: Path, *options: str) -> None:
    """The command, in this process; raises what it refuses."""
    cli.app(["verify-transcript", str(file), *options], standalone_mode=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The transcript, as it came."""
    path = tmp_path / "transcript"
    path.write_bytes(TRANSCRIPT.encode())
    return path


EXPECTED = f"""\
sum of 7 of 9 owners, signed by 6 of them
threshold   6 of 9 owners; safe while at most 2 help the server
secrets     open with 6 of 9 shares
job         job
phase       1 of 3, attempt 2
manifest    {TRANSCRIPT.manifest.hash.hex()}
plan        {PLAN}
base model  {BASE}
roster      {PINNED}

in the sum:
  org-000
  org-002
  org-003
  org-005
  org-006
  org-007
  org-008
not in the sum, never took part (R0):
  org-001
not in the sum, gone before all its masked numbers were there (R2):
  org-004
in the sum, but gone before it signed who is (R3):
  org-008

"""


def test_it_says_who_was_in_the_sum(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pinned in (PINNED, PINNED.upper()):
        verify(file, "--roster", pinned)
        out, err = capsys.readouterr()
        assert out == EXPECTED + "The signatures are valid, and the roster is the pinned one.\n"
        assert err == ""
        assert max(map(len, out.splitlines())) <= 80


def test_a_roster_that_was_not_compared_is_said_loudly(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(file)
    out, _ = capsys.readouterr()
    assert out.startswith(EXPECTED + "WARNING: THE ROSTER WAS NOT COMPARED.")
    assert "--roster SHA256" in out
    assert "valid" not in out
    assert max(map(len, out.splitlines())) <= 80


def _invented() -> Transcript:
    """All is well with it, but for who signed."""
    owners = [Identity(f"org-{seat:03d}", Secret(bytes([seat]) * 32)) for seat in range(9)]
    roster = Roster.of([identity.member for identity in owners])
    manifest = manifest_for(roster)
    signed = statement(manifest, TRANSCRIPT.sets)
    signatures = b"".join(owners[seat].sign(signed) for seat in TRANSCRIPT.signers)
    return replace(TRANSCRIPT, roster=roster, manifest=manifest, signatures=signatures)


def test_another_roster_than_the_pinned_one_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(_invented().encode())
    with pytest.raises(PeerInvalid, match="pinned") as refused:
        verify(file, "--roster", PINNED)
    assert refused.value.exit_code == 5
    assert capsys.readouterr().out == ""
    verify(file)  # which is why a comparison is asked for so loudly
    assert "WARNING" in capsys.readouterr().out


def test_no_byte_can_be_changed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = TRANSCRIPT.encode()
    # All of the tail, where sets and signatures are, and samples of manifest and roster.
    places = [*range(0, len(data), 23), *range(len(data) - 6 * 64 - 60, len(data), 5)]
    for place in places:
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(BlindmergeError) as refused:
            verify(file, "--roster", PINNED)
        assert refused.value.exit_code in (PeerInvalid.exit_code, TooFewOwners.exit_code), place
    assert capsys.readouterr().out == ""


CHANGED: dict[str, tuple[bytes, type[BlindmergeError]]] = {
    "empty": (b"", PeerInvalid),
    "cut off": (TRANSCRIPT.encode()[:-1], PeerInvalid),
    "continued": (TRANSCRIPT.encode() + b"\0", PeerInvalid),
    "a roster": (TRANSCRIPT.roster.encode(), ProtocolBroken),
    "too few signatures": (
        replace(
            TRANSCRIPT, signers=TRANSCRIPT.signers[:5], signatures=TRANSCRIPT.signatures[: 5 * 64]
        ).encode(),
        TooFewOwners,
    ),
    "one owner counted in": (
        replace(TRANSCRIPT, sets=replace(TRANSCRIPT.sets, u3=TRANSCRIPT.sets.u2)).encode(),
        SignatureInvalid,
    ),
}


@pytest.mark.parametrize(("data", "error"), CHANGED.values(), ids=CHANGED.keys())
def test_other_bytes_are_refused(
    data: bytes, error: type[BlindmergeError], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(data)
    with pytest.raises(error):
        verify(file)
    assert capsys.readouterr().out == ""


def test_no_more_is_read_than_a_transcript_may_hold(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_TRANSCRIPT_BYTES", len(TRANSCRIPT.encode()))
    verify(file)
    monkeypatch.setattr(cli, "_TRANSCRIPT_BYTES", len(TRANSCRIPT.encode()) - 1)
    with pytest.raises(PeerInvalid, match="larger than any transcript"):
        verify(file)
    with pytest.raises(PeerInvalid, match="larger"):  # it never ends
        verify(Path("/dev/zero"))


@pytest.mark.parametrize("roster", ["", "abc", PINNED[:-1], PINNED + "0", "g" * 64, PINNED + "\n"])
def test_a_malformed_hash_is_a_slip_of_the_keyboard(roster: str, file: Path) -> None:
    with pytest.raises(ConfigInvalid, match="--roster"):
        verify(file, "--roster", roster)


def test_exit_codes_tell_the_kind(file: Path, tmp_path: Path) -> None:
    good = blindmerge("verify-transcript", file, "--roster", PINNED, cwd=tmp_path, cache=None)
    assert (good.returncode, good.stderr) == (0, "")
    file.write_bytes(TRANSCRIPT.encode()[:-1])
    bad = blindmerge("verify-transcript", file, "--roster", PINNED, cwd=tmp_path, cache=None)
    assert (bad.returncode, bad.stdout) == (5, "")
    assert bad.stderr.startswith("blindmerge: error: ")
    gone = blindmerge("verify-transcript", "nothing", cwd=tmp_path, cache=None)
    assert (gone.returncode, gone.stdout) == (7, "")
    assert "'nothing': No such file or directory" in gone.stderr
