"""The manifest against real models: what transformers builds and what torch runs."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from blindmerge.errors import CheckpointInvalid, UnknownTensor
from blindmerge.manifest import ARCHITECTURES as TABLE
from blindmerge.manifest import Group, Linear, Manifest, Mean, describe, task_of
from blindmerge.tasks import LANGUAGE, Task
from blindmerge_client.models import auto_class
from blindmerge_client.tasks import TASKS
from support.evidence import bert_shapes
from support.pico import has_head, labels_for
from support.pico_configs import Architecture, config_of


def _minilm() -> Any:
    """MiniLM's proportions: deeper, the inner layers four times as wide."""
    sizes: dict[str, Any] = {"num_hidden_layers": 12, "num_attention_heads": 3, "num_labels": 3}
    config = BertConfig(vocab_size=30, **sizes, hidden_size=12, intermediate_size=48)
    return BertForSequenceClassification(config)


def _build(architecture: Architecture, task: Task) -> Any:
    config = config_of(architecture, 30)
    if task not in LANGUAGE:
        config.num_labels = len(labels_for(task))
    for key, value in TASKS[task].head.config.items():
        setattr(config, key, value)
    return auto_class(task).from_config(config)


MODELS: Mapping[str, Callable[[], Any]] = {"minilm": _minilm} | {
    f"{architecture}, {task}": partial(_build, architecture, task)
    for architecture in get_args(Architecture)
    for task in get_args(Task)
    if has_head(architecture, task)
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = MODELS[request.param]()
    return built.eval()


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _tensors(model).items()}


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Those of a checkpoint: of names for one tensor there is the first."""
    found: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        found.setdefault(tensor.data_ptr(), name)
    return {name: model.state_dict()[name] for name in found.values()}


def _call(model: Any) -> Any:
    """The logits of two texts, of a pair with four tokens in the target."""
    inputs = {"input_ids": torch.full((2, 5), 7)}
    inputs["attention_mask"] = torch.ones(2, 5, dtype=torch.long)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.full((2, 4), 7)
    with torch.inference_mode():
        return model(**inputs).logits


def _manifest(model: Any) -> Manifest:
    return describe(type(model).__name__, _shapes(model))


def _groups(manifest: Manifest) -> list[Group]:
    return [group for block in manifest.blocks for group in block.groups]


def test_table_is_tested_whole() -> None:
    images = {name for name in TABLE if name.endswith("ForImageClassification")}
    assert images == {"CLIPForImageClassification", "ViTForImageClassification"}  # test_vision
    assert {type(build()).__name__ for build in MODELS.values()} == set(TABLE) - images


def test_the_task_says_what_has_a_label(model: Any) -> None:
    # One row of logits per text, or one per token.
    logits = _call(model)
    task = task_of(type(model).__name__, model.config.to_dict())
    assert logits.dim() == (3 if task in {"token-classification", *LANGUAGE} else 2)
    assert (logits.shape[-1] == 1) == (task == "regression")
    assert (logits.shape[-1] == model.config.vocab_size) == (task in LANGUAGE)


def _rules_of(layer: Linear) -> set[str]:
    """What a layer is the rule of: its tensors, or its rows in one that it shares."""
    if layer.stored is None:
        return set(layer.tensors)
    return {f"{layer.stored.weight}[{layer.stored.start}:{layer.stored.start + layer.outputs}]"}


def test_every_tensor_has_exactly_one_rule(model: Any) -> None:
    manifest = _manifest(model)
    rules = Counter(mean.name for block in manifest.blocks for mean in block.means)
    rules.update(
        name for group in _groups(manifest) for layer in group.layers for name in _rules_of(layer)
    )
    expected = Counter(name for name, tensor in _tensors(model).items() if tensor.dim() < 3)
    for name, tensor in _tensors(model).items():
        if tensor.dim() == 3:  # experts, one above another
            rows = tensor.shape[1]
            expected.update(f"{name}[{e * rows}:{(e + 1) * rows}]" for e in range(len(tensor)))
    assert rules == expected
    assert manifest.shapes == _shapes(model)


def _linear_modules(model: Any) -> dict[str, Any]:
    """All that computes W x + b with a tensor of its own."""
    shapes = _shapes(model)
    return {
        name: module
        for name, module in model.named_modules()
        if (f"{name}.weight" in shapes and isinstance(module, (torch.nn.Linear, Conv1D)))
        or type(module).__name__.endswith("TopKRouter")
    }


def test_linear_rules_are_the_linear_modules(model: Any) -> None:
    linears = _linear_modules(model)
    alone = [group for group in _groups(_manifest(model)) if group.expert is None]
    layers = {layer.name: (g, layer) for g in alone for layer in g.layers}
    assert layers.keys() == linears.keys()
    for name, (group, layer) in layers.items():
        module = linears[name]
        shape = tuple(module.weight.shape)
        assert (group.inputs, layer.outputs) == (shape if type(module) is Conv1D else shape[::-1])
        bias = getattr(module, "bias", None) is not None
        assert layer.bias == group.bias == bias
        assert group.width == group.inputs + bias


def test_groups_are_the_layers_that_get_the_same_tensor_in_forward_order(model: Any) -> None:
    """The truth is what the model does: layers that were called with one tensor object."""
    calls: list[tuple[str, torch.Tensor]] = []

    def watch(name: str) -> Any:
        return lambda _, inputs: calls.append((name, inputs[0]))

    for name, module in _linear_modules(model).items():
        module.register_forward_pre_hook(watch(name))
    _call(model)
    seen: dict[object, tuple[set[str], Any]] = {}
    for name, tensor in calls:
        shape = tuple(tensor.shape[:-1])
        # Mixtures get all tokens in one row.
        # All layers of a decoder look at one output of an encoder.
        key = (id(tensor), name.split(".")[:3] if model.config.is_encoder_decoder else None)
        names, _ = seen.setdefault(repr(key), (set(), (2, 5) if shape == (10,) else shape))
        names.add(name)
    assert _expected_calls(model) == list(seen.values())


def _expected_calls(model: Any) -> list[tuple[set[str], Any]]:
    """Which layers are called on one tensor, and its shape without the width."""
    # [texts, tokens, width] has a row per token, [texts, width] a row per text.
    shapes = {"sequences": (2,), "target-tokens": (2, 4)}
    once: list[tuple[set[str], Any]] = []
    again: list[tuple[set[str], Any]] = []
    previous = ""
    for group in _groups(_manifest(model)):
        if group.expert is not None:  # whose layers are no modules
            continue
        names = {layer.name for layer in group.layers}
        calls = again if group.repeated else once
        if group.parallel and previous == "tokens-and-positions":
            once[-2][0].update(names)
            continue
        previous = group.rows
        if again and not group.repeated:
            once, again = once + again * model.config.num_hidden_layers, []
            calls = once
        calls.append((names, shapes.get(group.rows, (2, 5))))
        if group.rows == "tokens-and-positions":
            once.append((set(names), (1, 2 * model.config.position_buckets)))
    return once


def test_blocks_are_embeddings_layers_and_head(model: Any) -> None:
    manifest = _manifest(model)
    first, *_, last = manifest.blocks
    assert (first.name, first.module, first.groups) == ("embeddings", "", ())
    output = model.get_output_embeddings()
    if output is None or output.weight is not model.get_input_embeddings().weight:
        assert (last.name, last.module, last.means) == ("head", "", ())
    layers = {block.name: block for block in manifest.blocks if block.name == block.module}
    assert tuple(layers) == manifest.modules
    depth = {"albert": "num_hidden_groups"}.get(model.config.model_type, "num_hidden_layers")
    stacks = 2 if model.config.is_encoder_decoder else 1
    assert len(layers) == getattr(model.config, depth) * stacks
    for name, block in layers.items():
        inside = {f"{name}.{n}" for n, _ in model.get_submodule(name).named_parameters()}
        assert inside == block.shapes.keys()


def test_rows_of_more_than_ten_layers_stay_in_order() -> None:
    manifest = describe("BertForSequenceClassification", bert_shapes(layers=12))
    names = [block.name for block in manifest.blocks[1:-1]]
    assert names == [f"bert.encoder.layer.{index}" for index in range(12)]


def test_order_of_the_tensors_in_the_file_does_not_matter() -> None:
    shapes = bert_shapes()
    backwards = dict(reversed(shapes.items()))
    name = "BertForSequenceClassification"
    assert describe(name, backwards) == describe(name, shapes)


BERT = "BertForSequenceClassification"


def test_unknown_architecture_is_named_with_the_known_ones() -> None:
    with pytest.raises(CheckpointInvalid, match="'BloomForCausalLM'") as refused:
        describe("BloomForCausalLM", bert_shapes())
    assert all(name in refused.value.hint for name in TABLE)


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.0.attention.self.distance_embedding.weight",
        "bert.embeddings.position_ids",
        "bert.encoder.layer.1.adapter.weight",
        "lm_head.weight",
        "bert.encoder.layer.0.attention.self.query.weight_scale",
        "bertXembeddings.word_embeddings.weight",
        "classifier.bias2",
    ],
)
def test_tensor_without_a_rule_is_named(name: str) -> None:
    with pytest.raises(UnknownTensor) as refused:
        describe(BERT, {**bert_shapes(), name: (3, 8)})
    assert f"'{name}' [3, 8]" in refused.value.message
    assert f"of the module '{name.rpartition('.')[0]}'" in refused.value.message


def test_several_tensors_without_a_rule_are_counted() -> None:
    with pytest.raises(UnknownTensor, match=r"'a'.*\(and 2 more\)"):
        describe(BERT, {**bert_shapes(), "c": (1,), "b": (1,), "a": (1,)})


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.0.attention.self.key.weight",
        "bert.encoder.layer.1.output.dense.weight",
        "bert.pooler.dense.weight",
        "classifier.weight",
    ],
)
def test_missing_matrix_is_named(name: str) -> None:
    shapes = bert_shapes()
    del shapes[name]
    with pytest.raises(CheckpointInvalid, match=f"'{name}'".replace(".", r"\.")):
        describe(BERT, shapes)


@pytest.mark.parametrize("prefix", ["bert.encoder.layer.0.", "bert.encoder.", "bert.embeddings."])
def test_missing_block_is_refused(prefix: str) -> None:
    shapes = {n: shape for n, shape in bert_shapes().items() if not n.startswith(prefix)}
    with pytest.raises(CheckpointInvalid, match="missing"):
        describe(BERT, shapes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bert.encoder.layer.0.attention.self.key.weight": (8, 9)}, "differ in width"),
        ({"bert.encoder.layer.0.attention.self.key.bias": None}, "differ in width or in having"),
        ({"bert.encoder.layer.0.attention.self.key.bias": (9,)}, "does not fit"),
        ({"classifier.weight": (3, 8, 1)}, "'classifier.weight' is missing"),
        ({"classifier.weight": (0, 8), "classifier.bias": (0,)}, "is empty"),
        ({"bert.embeddings.word_embeddings.weight": (0, 8)}, "is empty"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    changed = {**bert_shapes(), **changes}
    shapes = {name: shape for name, shape in changed.items() if shape is not None}
    with pytest.raises(CheckpointInvalid, match=message):
        describe(BERT, shapes)


def test_layers_without_biases_have_no_bias_row() -> None:
    shapes = bert_shapes()
    for part in ("query", "key", "value"):
        del shapes[f"bert.encoder.layer.0.attention.self.{part}.bias"]
    manifest = describe(BERT, shapes)
    group = manifest.blocks[1].groups[0]
    assert (group.bias, group.inputs, group.width) == (False, 8, 8)
    assert manifest.shapes == shapes


def _dump() -> dict[str, Any]:
    return describe(BERT, bert_shapes()).model_dump()


def test_dump_reads_back() -> None:
    assert Manifest.model_validate(_dump()) == describe(BERT, bert_shapes())


@pytest.mark.parametrize("part", ["block", "mean", "group"])
def test_one_thing_twice_is_refused(part: str) -> None:
    dump = _dump()
    block = dump["blocks"][1]
    if part == "block":
        dump["blocks"] = (*dump["blocks"], block)
    else:
        block[f"{part}s"] = (*block[f"{part}s"], block[f"{part}s"][0])
    with pytest.raises(ValidationError, match="occurs twice"):
        Manifest.model_validate(dump)


def test_tensor_with_two_rules_is_refused() -> None:
    dump = _dump()
    means = dump["blocks"][0]["means"]
    dump["blocks"][0]["means"] = (*means, {"name": "classifier.weight", "shape": (3, 8)})
    with pytest.raises(ValidationError, match="occurs twice"):
        Manifest.model_validate(dump)


def test_group_without_layers_or_with_unlike_layers_is_refused() -> None:
    with_bias, without = (Linear(name=n, outputs=2, bias=n == "a") for n in ("a", "b"))
    with pytest.raises(ValidationError, match="at least 1 item"):
        Group(name="g", inputs=2, rows="tokens", layers=())
    with pytest.raises(ValidationError, match="some have none"):
        Group(name="g", inputs=2, rows="tokens", layers=(with_bias, without))


def test_sizes_are_positive() -> None:
    layer = Linear(name="a", outputs=2, bias=True)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Linear(name="a", outputs=0, bias=True)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Group(name="g", inputs=-1, rows="tokens", layers=(layer,))
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Mean(name="m", shape=(2, 0))
