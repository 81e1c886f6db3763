"""Owners with LoRA adapters: the scaled product of the factors is the change of the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, ConfigInvalid, ResourceMissing
from blindmerge.fine_tuned import check_fine_tuned
from blindmerge.statistic import Array
from blindmerge.tasks import Task
from blindmerge_client import adapters as module
from blindmerge_client.adapters import full_weights
from blindmerge_client.finetune import finetune, finetune_key
from blindmerge_client.options import LoraOptions, TrainingOptions
from support.jobs import LABELS, Job, edit_config, make_job, weights_of
from support.lora import adapter
from support.merging import merge
from support.pico import (
    Architecture,
    examples_for,
    labels_for,
    pico_encoder,
    pico_examples,
)

QUERY = "bert.encoder.layer.{}.attention.self.query"
NAMES = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "mpnet": ("attn.q", "attn.v"),
}
FAST = TrainingOptions(epochs=1, batch_size=8, max_length=16)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return pico_encoder(tmp_path / "base", labels=LABELS)


def products(folder: Path, scale: float) -> dict[str, Array]:
    """scale * B A by the weight's name, in float64."""
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[f"{layer}.weight"] = scale * (b.astype(np.float64) @ a.astype(np.float64))
    return found


@pytest.mark.parametrize("architecture", NAMES)
@pytest.mark.parametrize(("options", "scale"), [({}, 3.0), ({"use_rslora": True}, 6 / 2**0.5)])
def test_the_scaled_product_is_added_to_the_base(
    architecture: Architecture, options: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    base = pico_encoder(tmp_path / "base", architecture, labels=LABELS)
    names = list(NAMES[architecture])
    own = adapter(tmp_path / "own", base, target_modules=names, **options)
    full = Checkpoint(full_weights(own, base, tmp_path / "job"))
    check_fine_tuned(full, Checkpoint(base))
    changes = products(own, scale)
    assert len(changes) == 4
    found, before = full.read(full.shapes), Checkpoint(base).read(full.shapes)
    for name in before:
        # Two float32 products in a sum, on a weight of size 1.
        change = changes.get(name, 0.0)
        np.testing.assert_allclose(found[name], before[name] + change, rtol=0, atol=2.0**-22)


def test_layers_that_the_adapter_saved_whole_replace_those_of_the_base(
    base: Path, tmp_path: Path
) -> None:
    own = adapter(tmp_path / "own", base, modules_to_save=["classifier"])
    found = weights_of(full_weights(own, base, tmp_path / "job"))
    stored = load_file(own / "adapter_model.safetensors")
    np.testing.assert_array_equal(
        found["classifier.weight"], stored["base_model.model.classifier.weight"]
    )
    assert (found["classifier.weight"] != weights_of(base)["classifier.weight"]).any()


def test_a_model_with_all_weights_stays_where_it_is(base: Path, tmp_path: Path) -> None:
    assert full_weights(base, base, tmp_path / "job") == base
    assert not (tmp_path / "job").exists()


def test_an_adapter_is_added_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = adapter(tmp_path / "own", base)
    first = full_weights(own, base, tmp_path / "job")
    monkeypatch.setattr(module, "_added", None)
    assert full_weights(own, base, tmp_path / "job") == first


def test_a_job_of_adapters_is_that_of_the_full_models(tmp_path: Path) -> None:
    plain = make_job(tmp_path, owners=2, rows_factor=0.0)
    own = tuple(adapter(tmp_path / f"a{k}", plain.base, k) for k in range(2))
    full = tuple(full_weights(each, plain.base, tmp_path / "full") for each in own)
    results = []
    for name, owners in (("of adapters", own), ("of models", full)):
        job = Job(plain.base, owners, plain.texts, plain.plan, tmp_path / name)
        results.append(Checkpoint(merge(job)).sha256)
    assert results[0] == results[1]


def edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


A = f"base_model.model.{QUERY.format(0)}.lora_A.weight"
BROKEN: list[tuple[Any, str]] = [
    (
        lambda path: edit_config(path, "adapter_config.json", peft_type="IA3"),
        "adapter of the type IA3",
    ),
    (
        lambda path: (path / "adapter_model.safetensors").rename(path / "adapter_model.bin"),
        r"no adapter_model\.safetensors",
    ),
    (lambda path: edit(path, lambda t: t.pop(A)), "does not fit the base.*missing"),
    (
        lambda path: edit(path, lambda t: t.update({A: np.zeros((2, 17), np.float32)})),
        "does not fit the base",
    ),
    (
        lambda path: edit(path, lambda t: t.update({A.replace("0", "7"): t[A].copy()})),
        r"no place for .*layer\.7",
    ),
    (
        lambda path: edit_config(path, "adapter_config.json", target_modules=["absent"]),
        "does not fit the base.*absent",
    ),
    (
        lambda path: edit(path, lambda t: t[A].__setitem__((0, 0), np.float32("nan"))),
        "NaN or infinity",
    ),
]


@pytest.mark.parametrize(("spoil", "words"), BROKEN)
def test_what_is_no_adapter_for_the_base_is_refused(
    base: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    own = adapter(tmp_path / "own", base)
    spoil(own)
    with pytest.raises(CheckpointInvalid, match=words):
        Checkpoint(full_weights(own, base, tmp_path / "job")).sha256  # noqa: B018
    assert not list((tmp_path / "job").glob("adapter-*/config.json.*"))


def test_an_adapter_is_no_base(base: Path, tmp_path: Path) -> None:
    own = adapter(tmp_path / "own", base)
    with pytest.raises(CheckpointInvalid, match="adapter") as raised:
        Checkpoint(own)
    assert "base" in raised.value.hint


def test_without_peft_the_package_is_named(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = adapter(tmp_path / "own", base)

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(module, "import_module", absent)
    with pytest.raises(ResourceMissing, match="peft") as raised:
        full_weights(own, base, tmp_path / "job")
    assert "blindmerge[lora]" in raised.value.hint


def test_training_with_lora_changes_targets_by_a_low_rank_and_the_head(
    base: Path, tmp_path: Path
) -> None:
    lora = LoraOptions(rank=2, alpha=8, targets=("query",))
    options = FAST.model_copy(update={"lora": lora, "learning_rate": 1e-2})
    finetune(base, pico_examples(40), options, tmp_path / "own")
    before, after = weights_of(base), weights_of(tmp_path / "own")
    targets = {f"{QUERY.format(layer)}.weight" for layer in range(2)}
    head = set(Checkpoint(base).manifest.blocks[-1].shapes)
    moved = {name for name in before if (after[name] != before[name]).any()}
    assert moved == targets | head
    for name in targets:
        values = np.linalg.svd(after[name] - before[name], compute_uv=False)
        # Of the sum with weights of size 1 in float32.
        assert values[1] > 1e-4
        assert values[2] < 16 * 2.0**-23


def test_lora_is_part_of_what_names_a_trained_model() -> None:
    examples = pico_examples(4)
    keys = {
        finetune_key("0" * 64, examples, FAST.model_copy(update={"lora": lora}))
        for lora in (None, LoraOptions(), LoraOptions(rank=2), LoraOptions(targets=("query",)))
    }
    assert len(keys) == 4


def test_a_target_that_is_no_layer_is_named(base: Path, tmp_path: Path) -> None:
    options = FAST.model_copy(update={"lora": LoraOptions(targets=("q_proj",))})
    with pytest.raises(ConfigInvalid, match="'q_proj'") as raised:
        finetune(base, pico_examples(4), options, tmp_path / "own")
    assert "query" in raised.value.hint


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("gpt2", "causal-lm"), ("llama", "causal-lm"), ("mixtral", "single-label"), ("t5", "seq2seq")],
)
def test_decoders_and_mixtures_are_trained_with_lora(
    architecture: Architecture, task: Task, tmp_path: Path
) -> None:
    base = pico_encoder(tmp_path / "base", architecture, labels=labels_for(task), task=task)
    options = TrainingOptions(
        epochs=1, learning_rate=1e-2, batch_size=4, max_length=16, lora=LoraOptions(rank=2)
    )
    finetune(base, examples_for(task, 8), options, tmp_path / "own")
    before, after = Checkpoint(base), Checkpoint(tmp_path / "own")
    assert before.shapes == after.shapes
    names = sorted(before.shapes)
    old, new = before.read(names), after.read(names)
    moved = {name for name in names if (old[name] != new[name]).any()}
    head = before.manifest.head
    lora = {
        name
        for block in before.manifest.blocks
        for group in block.groups
        for layer in group.layers
        for name in layer.tensors[:1]
        if block.module and group.expert is None and not name.endswith("moe.gate.weight")
    }
    assert moved == lora | set(head.shapes if head else ())
