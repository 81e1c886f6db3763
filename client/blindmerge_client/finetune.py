"""The base checkpoint of a job, and an owner's model fine-tuned from it.

Fine-tuning is transformers' Trainer with AdamW, a linear schedule and batches of about equal
length, in bfloat16 where the processor computes in it. The same inputs on the same machine
with as many threads give the same model.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader, Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from blindmerge import canonical
from blindmerge.checkpoint import Checkpoint
from blindmerge.errors import CheckpointInvalid, DataInvalid, NotFinite
from blindmerge.files import replacing
from blindmerge.fine_tuned import check_fine_tuned
from blindmerge.manifest import ARCHITECTURES, task_of
from blindmerge.tasks import LANGUAGE, Task
from blindmerge_client.adapters import with_lora, without_lora
from blindmerge_client.batches import IGNORED, Tokens, pad, spread, tokenize
from blindmerge_client.data import Examples
from blindmerge_client.models import (
    best_device,
    check_max_length,
    has_bfloat16,
    head_classes,
    is_processor,
    load_encoder,
    load_model,
    load_tokenizer,
    quiet,
    save_model,
)
from blindmerge_client.options import TrainingOptions
from blindmerge_client.tasks import TASKS, Target, TaskRules

__all__ = [
    "TrainingOptions",
    "cached_base",
    "cached_finetune",
    "finetune",
    "finetune_key",
    "prepare_base",
]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


def prepare_base(
    source: Path, labels: Sequence[str], seed: int, out: Path, task: Task = "single-label"
) -> None:
    """Writes the checkpoint that all owners of a job start from: `source` with the task's head.

    source: a pre-trained encoder, which gets a new head for `labels`, initialised from `seed`;
    or a classifier for the task with just these labels in this order, whose numbers are kept.
    The result is float32; `out` is whole or absent.
    Raises CheckpointInvalid, with a hint, if `source` cannot serve.
    """
    config = _read_config(source)
    tokenizer = load_tokenizer(source, TASKS[task].head.tokenizer)
    if _has_head(source, config, task):
        _check_labels(source, labels)
        model = load_model(source)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = load_encoder(source, labels, task)
    if not is_processor(tokenizer):
        _fit_tokenizer(source, model, tokenizer)
    with replacing(out) as temporary:
        save_model(model, tokenizer, temporary)


def cached_base(
    cache: Path, source: Checkpoint, labels: Sequence[str], seed: int, task: Task
) -> Path:
    """The folder `cache/<key>` with what `prepare_base` makes, made only if it is not there."""
    content = canonical.encode([source.sha256, task, tuple(labels), seed])
    out = cache / hashlib.sha256(content).hexdigest()
    if not out.is_dir():
        prepare_base(source.path, labels, seed, out, task)
    return out


def _fit_tokenizer(
    source: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    if model.config.pad_token_id is None or "score.weight" in model.state_dict():
        # A decoder's classifier finds the last token of a text by it.
        model.config.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > model.config.vocab_size:
        raise CheckpointInvalid(
            f"the tokenizer in '{source}' has {len(tokenizer)} tokens, "
            f"its model only {model.config.vocab_size}"
        )


def finetune(
    base: Path,
    examples: Examples,
    options: TrainingOptions,
    out: Path,
    progress: Progress | None = None,
) -> None:
    """Writes the base, fine-tuned on the examples, into the new folder `out`, whole or absent.

    Raises CheckpointInvalid if the base cannot be read or the training went astray,
    ConfigInvalid if max_length is more than the model takes, DataInvalid if the examples are
    for another task or a label is not one of the model's, ResourceMissing if the disk is full.
    """
    checkpoint = Checkpoint(base)
    check_max_length(base, options.max_length)
    examples = _used(examples, options)
    model, tokenizer = load_model(base), load_tokenizer(base)
    labels = len(checkpoint.labels)
    if not examples or not examples.fit(checkpoint.task, labels):
        raise DataInvalid(f"the examples do not fit the {labels} labels of '{base}'")
    rows = tokenize(tokenizer, examples.texts, options.max_length)
    task, manifest = TASKS[checkpoint.task], checkpoint.manifest
    dataset = [
        _Row(row, task.target(row.words, label))
        for row, label in zip(rows, examples.labels, strict=True)
        # The first token of a text comes after nothing, and so cannot be learnt.
        if not task.language or "labels" in row.inputs or len(row) > 1
    ]
    if not dataset:
        raise DataInvalid("no text has a second token, which a language model could learn")
    with replacing(out) as temporary, _own_randomness(), quiet():
        trained = model if options.lora is None else with_lora(model, manifest, options.lora)
        trainer = _Trainer(
            model=trained,
            args=_arguments(options, temporary),
            train_dataset=dataset,
            data_collator=lambda batch: _collate(tokenizer, batch, task),
            callbacks=[_Report(progress)] if progress else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model = model if options.lora is None else without_lora(trained)
        save_model(model, tokenizer, temporary)
        try:
            check_fine_tuned(Checkpoint(temporary), checkpoint)
        except (CheckpointInvalid, NotFinite) as error:
            raise CheckpointInvalid(
                f"the fine-tuned '{out}' would be too far from its base to be merged",
                hint=f"lower learning_rate, which is {options.learning_rate:g}, or epochs",
            ) from error


def finetune_key(base_sha256: str, examples: Examples, options: TrainingOptions) -> str:
    """Hash of all that decides the result of `finetune`, save the machine's arithmetic.

    base_sha256: of the base (`Checkpoint.sha256`).
    """
    content = {
        "base": base_sha256,
        "examples": _used(examples, options).sha256,
        "options": options.model_dump(exclude={"rows"}, exclude_none=True),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": best_device().type,
        "bfloat16": has_bfloat16(),
    }
    return hashlib.sha256(canonical.encode(content)).hexdigest()


def cached_finetune(
    cache: Path,
    base: Path,
    base_sha256: str,
    examples: Examples,
    options: TrainingOptions,
    progress: Progress | None = None,
) -> Path:
    """The folder `cache/<key>` with the fine-tuned model, trained only if it is not there.

    Of two processes that train the same model at once the first to end leaves its folder,
    and both use that. Errors: see `finetune`.
    """
    out = cache / finetune_key(base_sha256, examples, options)
    if not out.is_dir():
        try:
            finetune(base, examples, options, out, progress)
        except OSError:
            # The other process put its folder there just before ours was to be renamed.
            if not out.is_dir():
                raise
    return out


@dataclass(frozen=True, slots=True)
class _Row:
    tokens: Tokens
    target: Target


class _Trainer(Trainer):
    """Trainer with batches of texts of the most equal length."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.train_dataset
        batches = _Buckets(
            [len(row.tokens) for row in rows],
            self.args.per_device_train_batch_size,
            np.random.default_rng(self.args.seed),
        )
        return DataLoader(rows, batch_sampler=batches, collate_fn=self.data_collator)


class _Buckets(Sampler[list[int]]):
    """Each epoch: all rows, sorted by length, in batches whose order is random.

    lengths: of each row.   Rows of one length are shuffled, so that batches differ from epoch
    to epoch. Trainer's own `group_by_length` sorts pieces of a few batches: for 1,000 sentences
    it computes 12 to 20 % more tokens, and each piece goes from long to short.
    """

    def __init__(self, lengths: Sequence[int], size: int, rng: np.random.Generator) -> None:
        self._lengths = np.asarray(lengths)
        self._size = size
        self._rng = rng

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._rng.permutation(len(self._lengths))
        order = order[np.argsort(self._lengths[order], kind="stable")]
        for number in self._rng.permutation(len(self)):
            yield order[number * self._size : (number + 1) * self._size].tolist()


class _Report(TrainerCallback):
    """Passes every step on to a Progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._progress(state.global_step, state.max_steps)


def _used(examples: Examples, options: TrainingOptions) -> Examples:
    return examples if options.rows is None else examples.first(options.rows)


def _arguments(options: TrainingOptions, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        warmup_steps=options.warmup,  # a part of the steps, as it is less than 1
        weight_decay=options.weight_decay,
        seed=options.seed,
        bf16=has_bfloat16(),
        use_cpu=best_device().type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _collate(
    tokenizer: PreTrainedTokenizerBase, batch: Sequence[_Row], task: TaskRules
) -> dict[str, torch.Tensor]:
    inputs = pad(tokenizer, [row.tokens for row in batch])
    if task.language:
        # The model itself compares what it says at one place with the token at the next.
        ids = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], IGNORED)
        return {"labels": ids} | inputs
    targets: list[Any] = [row.target for row in batch]
    padding = task.padding
    if padding is None:
        return inputs | {"labels": torch.tensor(targets)}
    return inputs | {"labels": spread(targets, inputs, padding)}


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leaves the global random states, which Trainer seeds, as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _read_config(source: Path) -> dict[str, Any]:
    hint = "give a folder written by transformers' `save_pretrained`"
    if not source.is_dir():
        raise CheckpointInvalid(f"there is no folder '{source}'", hint=hint)
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointInvalid(f"'{source}' has no config.json", hint=hint) from None
    except (OSError, ValueError) as error:
        raise CheckpointInvalid(f"'{source / 'config.json'}' cannot be read", hint=hint) from error
    if not isinstance(config, dict):
        raise CheckpointInvalid(f"'{source / 'config.json'}' is not a JSON object", hint=hint)
    return config


def _has_head(source: Path, config: Mapping[str, Any], task: Task) -> bool:
    """Whether `source` is a classifier already, and not an encoder that needs a head."""
    model_type = str(config.get("model_type"))
    classes = head_classes(task)
    if classes.get(model_type) not in ARCHITECTURES:
        known = sorted(kind for kind in classes if classes[kind] in ARCHITECTURES)
        raise CheckpointInvalid(
            f"'{source}' is a model of type '{model_type}', for which there are no merge rules",
            hint=f"supported types: {', '.join(known)}",
        )
    found = [each for each in config.get("architectures") or () if each in ARCHITECTURES]
    if found and task not in LANGUAGE and task_of(found[0], config) in LANGUAGE:
        return False  # a pre-trained decoder, whose output layer a classifier does not have
    if found and task_of(found[0], config) != task:
        raise CheckpointInvalid(
            f"'{source}' has a head for the task '{task_of(found[0], config)}', "
            f"the job is '{task}'",
            hint="give the encoder without a head",
        )
    return bool(found)


def _check_labels(source: Path, labels: Sequence[str]) -> None:
    found = Checkpoint(source).labels
    if found != tuple(labels):
        raise CheckpointInvalid(
            f"'{source}' has a head for the labels {list(found)}, the job has {list(labels)}",
            hint="the order counts; for a new head, give the encoder without one",
        )
