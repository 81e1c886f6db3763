"""The pico models are what their users take them for."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from blindmerge.checkpoint import Checkpoint
from support.pico import (
    ARCHITECTURES,
    TAGS,
    Architecture,
    has_head,
    pico_encoder,
    pico_examples,
    pico_sentences,
)

CLASSES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "mpnet": "MPNetForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "albert": "AlbertForSequenceClassification",
    "deberta": "DebertaV2ForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "gemma": "GemmaForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3": "Gemma3TextForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
    "qwen2-moe": "Qwen2MoeForSequenceClassification",
    "qwen3-moe": "Qwen3MoeForSequenceClassification",
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_classifier_loads_and_runs_and_has_a_manifest(
    architecture: Architecture, tmp_path: Path
) -> None:
    folder = pico_encoder(tmp_path / "model", architecture, labels=("no", "yes", "maybe"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(["this film is good", "zebra"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        assert model(**inputs).logits.shape == (2, 3)
    assert tokenizer.unk_token_id not in inputs["input_ids"]
    assert tokenizer.pad_token_id == model.config.pad_token_id
    checkpoint = Checkpoint(folder)
    assert checkpoint.architecture == CLASSES[architecture]
    assert checkpoint.labels == ("no", "yes", "maybe")
    assert checkpoint.manifest.shapes == checkpoint.shapes


@pytest.mark.parametrize(
    "architecture", [each for each in ARCHITECTURES if has_head(each, "token-classification")]
)
def test_tagger_has_logits_for_every_token_and_a_manifest(
    architecture: Architecture, tmp_path: Path
) -> None:
    folder = pico_encoder(
        tmp_path / "model", architecture, labels=TAGS, task="token-classification"
    )
    model = AutoModelForTokenClassification.from_pretrained(folder)
    with torch.inference_mode():
        assert model(input_ids=torch.full((2, 5), 7)).logits.shape == (2, 5, 3)
    checkpoint = Checkpoint(folder)
    assert checkpoint.architecture == CLASSES[architecture].replace("Sequence", "Token")
    assert checkpoint.labels == TAGS
    assert checkpoint.manifest.shapes == checkpoint.shapes


def test_sentences_depend_on_the_seed_alone_and_have_all_tags() -> None:
    assert pico_sentences(20) == pico_sentences(20)
    assert pico_sentences(20) != pico_sentences(20, seed=1)
    tags = [tag for label in pico_sentences(20).labels if isinstance(label, tuple) for tag in label]
    assert set(tags) == {0, 1, 2}


def test_seed_decides_the_weights_and_leaves_the_callers_state_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    hashes = [
        Checkpoint(pico_encoder(tmp_path / str(number), seed=seed)).sha256
        for number, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert hashes[0] == hashes[1] != hashes[2]


def test_examples_depend_on_the_seed_alone() -> None:
    assert pico_examples(20) == pico_examples(20)
    assert pico_examples(20) != pico_examples(20, seed=1)
    assert set(pico_examples(20).labels) == {0, 1}
