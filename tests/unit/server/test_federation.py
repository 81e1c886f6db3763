"""The federation file: what a good one becomes, and what each mistake says."""

from pathlib import Path

import pytest

from blindmerge.errors import ConfigInvalid
from blindmerge.merge import Average, Fisher, RegMean, Ties
from blindmerge_client.options import TrainingOptions
from blindmerge_server.simulate.federation import Federation, read_federation

GOOD = """
[job]
name = "topics"
base = "model"
labels = ["a", "b"]
method = "regmean"

[[owner]]
name = "north"
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.csv"

[[owner]]
name = "south"
train = "embedded:south/train.jsonl"
validation = "embedded:south/validation.jsonl.gz"
test = "embedded:south/test.parquet"

[[owner]]
name = "west"
train = "embedded:west/train.jsonl"
validation = "embedded:west/validation.jsonl.gz"
test = "embedded:west/test.parquet"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that GOOD names."""
    for name in ("train.jsonl", "validation.jsonl", "test.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def read(folder: Path, text: str) -> Federation:
    path = folder / "federation.toml"
    path.write_text(text)
    return read_federation(path)


def refusal(folder: Path, text: str) -> list[str]:
    """The mistakes that the file is refused for, without the name of the file."""
    with pytest.raises(ConfigInvalid) as caught:
        read(folder, text)
    first, *rest = caught.value.message.splitlines()
    path = folder / "federation.toml"
    if not rest:
        assert first.startswith(f"{path}: ")
        return [first.removeprefix(f"{path}: ")]
    assert first == f"{path} has {len(rest)} mistakes:"
    return [line.removeprefix("  ") for line in rest]


def test_a_good_file_is_read_with_its_defaults(folder: Path) -> None:
    federation = read(folder, GOOD)
    assert federation.job.method == RegMean()
    assert federation.job.compare == ()
    assert federation.job.examples == 1000
    assert federation.training == TrainingOptions()
    assert [owner.name for owner in federation.owners] == ["north", "south", "west"]
    assert (federation.job.masks, federation.job.colluders, federation.job.bits) == ("on", None, 64)
    assert federation.job.base == folder / "model"
    assert federation.owners[0].test == folder / "test.csv"
    assert federation.owners[0].checkpoint is None


def test_paths_are_relative_to_the_file_not_to_the_current_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "federation.toml").write_text(GOOD)
    monkeypatch.chdir(folder.parent)
    federation = read_federation(Path(folder.name) / "federation.toml")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert federation.owners[0].train == folder / "train.jsonl"
    assert federation.owners[0].train.is_absolute()


def test_methods_are_tables_or_names_and_each_has_an_id(folder: Path) -> None:
    methods = """method = { name = "regmean", ridge = 1 }
compare = ["average", { name = "ties", density = 0.5 }, "regmean", "fisher", "average"]"""
    job = read(folder, GOOD.replace('method = "regmean"', methods)).job
    assert job.methods == {
        "regmean": RegMean(ridge=1.0),
        "average": Average(),
        "ties": Ties(density=0.5),
        "regmean-2": RegMean(),
        "fisher": Fisher(),
    }


MISTAKES = [
    (
        'name = "topics"',
        'name = "To Pics"',
        'job.name: "To Pics" is not a job name; use lower-case '
        "letters, digits and hyphens, at most 64",
    ),
    ('name = "topics"', "name = 3", "job.name: 3 is not a text in quotes"),
    (
        'name = "topics"',
        "",
        "job.name: is missing; give a name for the job: lower-case letters, "
        "digits and hyphens, at most 64",
    ),
    ('base = "model"', 'base = "nothing"', "job.base: <folder>/nothing does not exist"),
    (
        'base = "model"',
        'base = "test.csv"',
        "job.base: <folder>/test.csv is not a folder; give the folder of a transformers checkpoint",
    ),
    (
        'base = "model"',
        'base = "."',
        "job.base: <folder> has no config.json; give the folder of a transformers checkpoint",
    ),
    ('base = "model"', 'base = ""', 'job.base: "" is not a path in quotes'),
    (
        'base = "model"',
        'bose = "model"\nbase = "model"',
        'job.bose: is not a key of this table; did you mean "base"?',
    ),
    (
        'base = "model"',
        'base = "model"\ntask = "token-classification"',
        'job.labels: tags of words are "O" and, for each type of entity, "B-..." or "I-..."',
    ),
    ('["a", "b"]', '["a"]', "job.labels: a task needs at least two labels"),
    (
        '["a", "b"]',
        '["a", "b", "a"]',
        'job.labels: "a" occurs twice; every label needs its own name',
    ),
    (
        '["a", "b"]',
        '["a", " "]',
        "job.labels: an empty label is not allowed; give every label a name",
    ),
    ('["a", "b"]', '["a", 1]', "job.labels[2]: 1 is not a text in quotes"),
    ('["a", "b"]', '"a"', 'job.labels: "a" is not a list in square brackets'),
    (
        'method = "regmean"',
        "",
        'job.method: is missing; give how to merge, e.g. { name = "regmean", ridge = 0.1 }',
    ),
    (
        '"regmean"',
        '"regmaen"',
        'job.method: "regmaen" is not a merge method; did you mean "regmean"?',
    ),
    (
        '"regmean"',
        '"xyz"',
        'job.method: "xyz" is not a merge method; known: average, fisher, '
        "progressive, regmean, regmean++, task-arithmetic, ties",
    ),
    (
        '"regmean"',
        "{ ridge = 1 }",
        'job.method: names no method; add name = "average", "fisher", '
        '"progressive", "regmean", "regmean++", "task-arithmetic" or "ties"',
    ),
    (
        '"regmean"',
        '{ name = "regmean", rigde = 1 }',
        'job.method.rigde: is not a key of this table; did you mean "ridge"?',
    ),
    (
        '"regmean"',
        '{ name = "regmean", ridge = -1 }',
        "job.method.ridge: -1 is out of range; it must be at least 0",
    ),
    (
        '"regmean"',
        '{ name = "regmean", ridge = inf }',
        "job.method.ridge: inf is not a finite number",
    ),
    ('"regmean"', '{ name = "regmean", ridge = "low" }', 'job.method.ridge: "low" is not a number'),
    (
        '"regmean"',
        '{ name = "regmean", weighting = "rows" }',
        'job.method.weighting: "rows" is not allowed; choose "equal" or "tokens"',
    ),
    (
        '"regmean"',
        '"regmean"\ncompare = ["avarage"]',
        'job.compare[1]: "avarage" is not a merge method; did you mean "average"?',
    ),
    (
        '"regmean"',
        '"regmean"\ncompare = ["average", { name = "ties", density = 2 }]',
        "job.compare[2].density: 2 is out of range; it must be at most 1",
    ),
    (
        '"regmean"',
        '"regmean"\ncompare = "average"',
        'job.compare: "average" is not a list in square brackets',
    ),
    (
        '"regmean"',
        '"regmean"\nexamples = 0',
        "job.examples: 0 is out of range; it must be at least 1",
    ),
    ('"regmean"', '"regmean"\nexamples = 1.5', "job.examples: 1.5 is not a whole number"),
    ('"regmean"', '"regmean"\nexamples = true', "job.examples: true is not a whole number"),
    (
        "[job]",
        "colour = 3\n[job]",
        "colour: is not a key of this table; known: job, training, noise, owner",
    ),
    ("[job]", "training = 3\n[job]", "training: 3 is not a table"),
    (
        "[job]",
        "[training]\nepoch = 1\n[job]",
        'training.epoch: is not a key of this table; did you mean "epochs"?',
    ),
    ("[job]", '[training]\nepochs = "x"\n[job]', 'training.epochs: "x" is not a whole number'),
    (
        'name = "north"',
        'name = "North"',
        'owner.North.name: "North" is not an owner\'s name; use '
        "lower-case letters, digits and hyphens, at most 32",
    ),
    (
        'name = "north"',
        "",
        "owner #1.name: is missing; give a name for the owner: lower-case "
        "letters, digits and hyphens, at most 32",
    ),
    ('name = "north"', 'name = "south"', 'owner: the name "south" occurs twice; names must differ'),
    ('"train.jsonl"', '"none.jsonl"', "owner.north.train: <folder>/none.jsonl does not exist"),
    (
        '"train.jsonl"',
        '"train.txt"',
        'owner.north.train: "train.txt" has no known suffix; use '
        ".jsonl, .jsonl.gz, .csv or .parquet",
    ),
    ('"train.jsonl"', "7", "owner.north.train: 7 is not a path in quotes"),
    (
        '"train.jsonl"',
        '"validation.jsonl"',
        "owner.north.validation: is the same file as train; use different texts",
    ),
    (
        '"train.jsonl"',
        f'"{"x" * 300}.jsonl"',
        f"owner.north.train: <folder>/{'x' * 300}.jsonl cannot be read: File name too long",
    ),
    (
        'train = "train.jsonl"',
        "",
        "owner.north.train: is missing; give a file of labelled texts to train on",
    ),
    (
        'name = "north"',
        'name = "north"\ncheckpoint = "gone"',
        "owner.north.checkpoint: <folder>/gone does not exist",
    ),
]


@pytest.mark.parametrize(("old", "new", "mistake"), MISTAKES)
def test_each_mistake_names_the_key_and_what_is_allowed(
    folder: Path, old: str, new: str, mistake: str
) -> None:
    assert old in GOOD
    assert refusal(folder, GOOD.replace(old, new, 1)) == [mistake.replace("<folder>", str(folder))]


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    text = GOOD.replace('"topics"', "1").replace('"b"', '"a"').replace("train.jsonl", "no.csv", 1)
    text = text.replace('name = "north"', 'name = "north"\ncolour = "red"')
    assert refusal(folder, text) == [
        "job.name: 1 is not a text in quotes",
        'job.labels: "a" occurs twice; every label needs its own name',
        f"owner.north.train: {folder}/no.csv does not exist",
        "owner.north.colour: is not a key of this table; known: name, train, validation, test, "
        "checkpoint, labels, allow_masks_off",
    ]


def test_mistakes_between_owners_are_told_beside_those_within(folder: Path) -> None:
    text = GOOD.replace('"south"', '"north"').replace('"topics"', "1")
    assert refusal(folder, text) == [
        "job.name: 1 is not a text in quotes",
        'owner: the name "north" occurs twice; names must differ',
    ]


def test_one_owner_is_too_few(folder: Path) -> None:
    text = GOOD[: GOOD.index('[[owner]]\nname = "south"')]
    assert refusal(folder, text) == ["owner: 1 is too few; a simulation takes at least 2 owners"]


def test_an_owner_in_single_brackets_is_told_about_brackets(folder: Path) -> None:
    text = GOOD[: GOOD.index('[[owner]]\nname = "south"')].replace("[[owner]]", "[owner]")
    assert refusal(folder, text) == [
        "owner: write [[owner]] with two brackets, one such table per organisation"
    ]


def test_an_empty_file_is_told_what_it_needs(folder: Path) -> None:
    assert refusal(folder, "") == [
        "job: is missing; give a [job] table",
        "owner: is missing; give at least two [[owner]] tables",
    ]


def test_a_syntax_error_names_the_line(folder: Path) -> None:
    (mistake,) = refusal(folder, GOOD.replace('base = "model"', "base = "))
    assert mistake.startswith("line 4, column 8: not TOML: ")


def test_a_file_that_is_no_text_names_the_line(folder: Path) -> None:
    path = folder / "federation.toml"
    path.write_bytes(GOOD.encode().replace(b"regmean", b"\xff"))
    with pytest.raises(ConfigInvalid, match="line 6: is not UTF-8 text"):
        read_federation(path)


def test_a_file_of_the_wrong_kind_is_refused_before_it_is_parsed(folder: Path) -> None:
    path = folder / "federation.toml"
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigInvalid, match="is larger than 1 MiB"):
        read_federation(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.toml", "No such file or directory"), ("model", "Is a directory")],
)
def test_a_file_that_cannot_be_read_is_named(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        read_federation(folder / name)
    assert caught.value.message == f"{folder / name}: cannot be read: {reason}"
    assert caught.value.hint


@pytest.mark.parametrize(
    "path", ["../x.csv", "a/../../x.csv", "/etc/x.csv", "", "..", "a\\\\..\\\\x.csv"]
)
def test_embedded_paths_cannot_leave_their_folder(folder: Path, path: str) -> None:
    text = GOOD.replace("embedded:south/train.jsonl", f"embedded:{path}")
    (mistake,) = refusal(folder, text)
    shown = path.replace("\\\\", "\\")
    assert mistake == (
        f'owner.south.train: "embedded:{shown}" leaves the embedded folder; name something in it'
    )


def test_resolve_replaces_embedded_paths_by_real_ones(folder: Path) -> None:
    embedded = folder / "embedded"
    names = {"train": "train.jsonl", "validation": "validation.jsonl.gz", "test": "test.parquet"}
    for owner in ("south", "west"):
        (embedded / owner).mkdir(parents=True)
        for name in names.values():
            (embedded / owner / name).write_text("")
    federation = read(folder, GOOD)
    assert federation.needs_embedded
    resolved = federation.resolve(embedded)
    assert not resolved.needs_embedded
    assert resolved.job == federation.job
    assert resolved.owners[0] == federation.owners[0]
    for part, name in names.items():
        assert getattr(resolved.owners[1], part) == embedded / "south" / name
    assert resolved.resolve(folder / "elsewhere") == resolved


def test_resolve_names_every_path_that_leads_nowhere(folder: Path) -> None:
    embedded = folder / "embedded"
    with pytest.raises(ConfigInvalid) as caught:
        read(folder, GOOD.replace('"model"', '"embedded:model"')).resolve(embedded)
    assert caught.value.message.splitlines() == [
        f"{folder / 'federation.toml'} has 7 mistakes:",
        f"  job.base: {embedded}/model does not exist",
        f"  owner.south.train: {embedded}/south/train.jsonl does not exist",
        f"  owner.south.validation: {embedded}/south/validation.jsonl.gz does not exist",
        f"  owner.south.test: {embedded}/south/test.parquet does not exist",
        f"  owner.west.train: {embedded}/west/train.jsonl does not exist",
        f"  owner.west.validation: {embedded}/west/validation.jsonl.gz does not exist",
        f"  owner.west.test: {embedded}/west/test.parquet does not exist",
    ]
