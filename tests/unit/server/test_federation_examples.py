"""The embedded federation and the files in `examples/`."""

import re
import tomllib

from blindmerge_client.data import read_examples
from blindmerge_client.tasks import Text
from blindmerge_server.noise_settings import NoiseSettings
from blindmerge_server.simulate.federation import Job, Owner, default_federation, read_federation
from support.tree import ROOT

EXAMPLES = ROOT / "examples"


def test_the_embedded_federation_is_also_an_example() -> None:
    assert default_federation().read_bytes() == (EXAMPLES / "embedded.toml").read_bytes()


def test_the_embedded_federation_needs_nothing_from_the_user() -> None:
    federation = read_federation(default_federation())
    names = [owner.name for owner in federation.owners]
    assert names == ["tweets", "products", "films", "editorials"]
    assert federation.job.labels == ("negative", "positive")
    assert list(federation.job.methods) == ["regmean", "average", "fisher"]
    assert federation.needs_embedded


def test_the_example_with_own_data_is_whole() -> None:
    federation = read_federation(EXAMPLES / "own-data.toml")
    assert len(federation.owners) == 3
    texts: list[Text] = []
    for owner in federation.owners:
        for path in (owner.train, owner.validation, owner.test):
            examples = read_examples(path, federation.job.labels)
            assert set(examples.labels) == {0, 1, 2}
            texts += examples.texts
    assert len(set(texts)) == len(texts) == 3 * 3 * 12


def test_the_example_with_own_data_shows_every_key_of_a_job_and_an_owner() -> None:
    text = (EXAMPLES / "own-data.toml").read_text()
    raw = tomllib.loads(re.sub(r"^# (?=\w+ = |\[noise\])", "", text, flags=re.MULTILINE))
    assert Job.model_fields.keys() - raw["job"].keys() == {"compare"}
    assert raw["owner"][0].keys() == Owner.model_fields.keys()
    assert NoiseSettings.model_fields.keys() - raw["noise"].keys() == {"multiplier"}
    NoiseSettings.model_validate(raw["noise"])


def test_the_examples_are_summed_under_masks() -> None:
    files = sorted(EXAMPLES.glob("*.toml"))
    assert len(files) >= 2
    for file in files:
        assert read_federation(file).job.masks == "on"
