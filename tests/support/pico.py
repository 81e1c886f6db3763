"""Pico models: real transformers checkpoints with random weights, made in milliseconds.

    folder = pico_encoder(tmp_path / "encoder")                               # BertModel
    folder = pico_encoder(tmp_path / "base", "roberta", labels=("no", "yes"))  # a classifier
    folder = pico_encoder(tmp_path / "base", labels=TAGS, task="token-classification")

Width 16, two layers, two heads, 64 positions. The WordPiece vocabulary is `WORDS` plus the
letters, so every lower-case text has tokens; RoBERTa and MPNet get it with RoBERTa's special
tokens and its padding id of 1. `pico_examples` makes texts of these words whose label can be
learnt, `pico_sentences` the same split into words with tags.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, get_args

import torch
from transformers import AutoModel, BertTokenizer, PreTrainedTokenizerFast

from blindmerge.manifest import ARCHITECTURES as RULES
from blindmerge.tasks import LANGUAGE, Task
from blindmerge_client.data import Examples
from blindmerge_client.models import auto_class, head_classes, quiet
from blindmerge_client.tasks import TASKS, Pair
from support.pico_configs import Architecture, config_of

__all__ = [
    "ARCHITECTURES",
    "ENCODER_TASKS",
    "IN_FORWARD_ORDER",
    "LANGUAGE_MODELS",
    "TAGS",
    "WORDS",
    "Architecture",
    "examples_for",
    "has_head",
    "labels_for",
    "pico_encoder",
    "pico_examples",
    "pico_pairs",
    "pico_ratings",
    "pico_sentences",
    "pico_texts",
    "pico_topics",
]

# One of each kind of layer that can be merged in forward order.
IN_FORWARD_ORDER: tuple[Architecture, ...] = (
    "bert",
    "mpnet",
    "electra",
    "deberta",
    "gpt2",
    "qwen3",
    "mixtral",
)

LANGUAGE_MODELS: tuple[tuple[Architecture, Task], ...] = (
    ("gpt2", "causal-lm"),
    ("llama", "causal-lm"),
    ("gemma3", "causal-lm"),
    ("qwen3-moe", "causal-lm"),
    ("t5", "seq2seq"),
    ("t5-gated", "seq2seq"),
)
"""With output layers of their own, Llama and Qwen, or tied to the embeddings."""

NEUTRAL = ("a", "the", "this", "film", "tweet", "phone", "is", "was", "it", "we", "they", "so")
POSITIVE = ("good", "great", "happy", "fine", "love", "nice", "best")
NEGATIVE = ("bad", "awful", "sad", "poor", "hate", "ugly", "worst")
WORDS = NEUTRAL + POSITIVE + NEGATIVE
TAGS = ("B-MOOD", "I-MOOD", "O")
ENCODER_TASKS: tuple[Task, ...] = (
    "single-label",
    "multi-label",
    "regression",
    "token-classification",
)

_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def pico_encoder(
    folder: Path,
    architecture: Architecture = "bert",
    seed: int = 0,
    labels: Sequence[str] = (),
    task: Task = "single-label",
) -> Path:
    """Writes a pico checkpoint with its tokenizer into `folder` and returns `folder`.

    seed: of the weights; the caller's random state is left alone.
    labels: without them an encoder is written, with them a classifier for the task. A language
        model has none.
    """
    tokenizer = _tokenizer(architecture)
    config = config_of(architecture, len(tokenizer))
    config.initializer_range = 0.25  # 1/sqrt(width): with the usual 0.02 all texts look alike
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    if labels:
        for key, value in TASKS[task].head.config.items():
            setattr(config, key, value)
    kind: Any = auto_class(task) if labels or task in LANGUAGE else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def has_head(architecture: Architecture, task: Task) -> bool:
    """Whether there are models of this kind for the task."""
    return head_classes(task).get(config_of(architecture, 30).model_type) in RULES


# Those with classifiers of texts.
ARCHITECTURES: tuple[Architecture, ...] = tuple(
    each for each in get_args(Architecture) if has_head(each, "single-label")
)


def pico_examples(count: int, seed: int = 0) -> Examples:
    """Texts of 3 to 12 known words; label 1 has one positive word, label 0 a negative one."""
    rng = random.Random(seed)  # noqa: S311
    texts, labels = [], []
    for _ in range(count):
        label = rng.randrange(2)
        words = rng.choices(NEUTRAL, k=rng.randint(2, 11))
        words.insert(rng.randint(0, len(words)), rng.choice((NEGATIVE, POSITIVE)[label]))
        texts.append(" ".join(words))
        labels.append(label)
    return Examples(tuple(texts), tuple(labels))


def pico_topics(count: int, seed: int = 0) -> Examples:
    """Texts like those, with three labels: has a positive word, a negative one, the word `film`.

    Any number of the three may hold, also none.
    """
    rng = random.Random(seed)  # noqa: S311
    groups = (POSITIVE, NEGATIVE, ("film",))
    plain = [word for word in NEUTRAL if word != "film"]
    texts, labels = [], []
    for _ in range(count):
        label = tuple(rng.randrange(2) for _ in groups)
        words = rng.choices(plain, k=rng.randint(2, 9))
        for holds, group in zip(label, groups, strict=True):
            if holds:
                words.insert(rng.randint(0, len(words)), rng.choice(group))
        texts.append(" ".join(words))
        labels.append(label)
    return Examples(tuple(texts), tuple(labels))


def pico_ratings(count: int, seed: int = 0) -> Examples:
    """Texts like those, whose number is the share of positive words minus that of negative ones."""
    rng = random.Random(seed)  # noqa: S311
    texts, labels = [], []
    for _ in range(count):
        words = rng.choices(WORDS, k=rng.randint(3, 9))
        balance = sum((word in POSITIVE) - (word in NEGATIVE) for word in words)
        texts.append(" ".join(words))
        labels.append(balance / len(words))
    return Examples(tuple(texts), tuple(labels))


def pico_texts(count: int, seed: int = 0) -> Examples:
    """Texts of 4 to 9 known words, each of which mostly follows from the one before it."""
    rng = random.Random(seed)  # noqa: S311
    texts = []
    for _ in range(count):
        places = [rng.randrange(len(WORDS))]
        for _ in range(rng.randint(3, 8)):
            step = 1 if rng.random() < 0.9 else rng.randrange(len(WORDS))
            places.append((places[-1] + step) % len(WORDS))
        texts.append(" ".join(WORDS[place] for place in places))
    return Examples(tuple(texts), ((),) * count)


def pico_pairs(count: int, seed: int = 0) -> Examples:
    """Texts of 3 to 8 known words, and the moods among these, or `so` if there is none."""
    rng = random.Random(seed)  # noqa: S311
    pairs = []
    for _ in range(count):
        words = rng.choices(WORDS, k=rng.randint(3, 8))
        moods = [word for word in words if word not in NEUTRAL]
        pairs.append(Pair(" ".join(words), " ".join(moods or ["so"])))
    return Examples(tuple(pairs), ((),) * count)


def labels_for(task: Task) -> tuple[str, ...]:
    """Labels of a model for the task."""
    return _LABELS[task]


def examples_for(task: Task, count: int, seed: int = 0) -> Examples:
    """Examples that a pico model can learn the task from, with labels of `labels_for`."""
    return _EXAMPLES[task](count, seed)


def pico_sentences(count: int, seed: int = 0) -> Examples:
    """Sentences of 2 to 9 words with tags of `TAGS`, each of which follows from its word.

    Positive words begin an entity, negative ones continue or begin one. One word in seven is
    unknown, and hence many tokens.
    """
    rng = random.Random(seed)  # noqa: S311
    texts = [
        tuple(rng.choices((*WORDS, *("zebra",) * 4), k=rng.randint(2, 9))) for _ in range(count)
    ]
    tags = dict.fromkeys(POSITIVE, 0) | dict.fromkeys(NEGATIVE, 1)
    return Examples(
        tuple(texts), tuple(tuple(tags.get(word, 2) for word in text) for text in texts)
    )


_LABELS: Mapping[Task, tuple[str, ...]] = {
    "single-label": ("no", "yes", "maybe"),
    "multi-label": ("glad", "angry", "film"),
    "regression": ("mood",),
    "token-classification": TAGS,
    "causal-lm": (),
    "seq2seq": (),
}
_EXAMPLES: Mapping[Task, Callable[[int, int], Examples]] = {
    "single-label": pico_examples,
    "multi-label": pico_topics,
    "regression": pico_ratings,
    "token-classification": pico_sentences,
    "causal-lm": pico_texts,
    "seq2seq": pico_pairs,
}


def _vocabulary(special: Sequence[str]) -> dict[str, int]:
    pieces = [f"##{letter}" for letter in ascii_lowercase]
    letters = [letter for letter in ascii_lowercase if letter not in WORDS]
    return {token: index for index, token in enumerate([*special, *WORDS, *letters, *pieces])}


def _tokenizer(architecture: Architecture) -> Any:
    if architecture in ("roberta", "mpnet"):
        return _roberta_tokenizer()
    names = ["input_ids", "attention_mask"]
    if architecture in ("bert", "electra", "albert", "deberta"):
        names.insert(1, "token_type_ids")
    return BertTokenizer(_vocabulary(_BERT_SPECIAL), model_max_length=64, model_input_names=names)


def _roberta_tokenizer() -> Any:
    bos, pad, eos, unknown, mask = _ROBERTA_SPECIAL
    backend = BertTokenizer(
        _vocabulary(_ROBERTA_SPECIAL),
        unk_token=unknown,
        sep_token=eos,
        pad_token=pad,
        cls_token=bos,
        mask_token=mask,
    )
    kind: Any = PreTrainedTokenizerFast
    return kind(
        tokenizer_object=backend.backend_tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        sep_token=eos,
        pad_token=pad,
        cls_token=bos,
        mask_token=mask,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )
