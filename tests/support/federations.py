"""Federation files with pico models, for whole simulations in seconds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from blindmerge.tasks import Task
from blindmerge_client.data import Examples
from blindmerge_client.tasks import Pair
from support.pico import Architecture, examples_for, labels_for, pico_encoder

__all__ = ["LABELS", "json_lines", "pico_federation"]

LABELS = ("negative", "positive")
_ARCHITECTURES: Mapping[Task, Architecture] = {"causal-lm": "gpt2", "seq2seq": "t5"}


def pico_federation(
    folder: Path,
    owners: Sequence[str] = ("alpha", "beta", "gamma"),
    job: str = "",
    task: Task = "single-label",
    own_labels: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Writes an encoder, texts and `federation.toml` into `folder`; returns the file.

    job: more lines of the [job] table.   own_labels: of owners that do not have the job's.
    """
    architecture = _ARCHITECTURES.get(task, "bert")
    labels = LABELS if task == "single-label" else labels_for(task)
    folder.mkdir(parents=True, exist_ok=True)
    pico_encoder(folder / "encoder", architecture, task=task)
    lines = [
        "[job]",
        'name = "pico"',
        'base = "encoder"',
        f'task = "{task}"',
        *([f"labels = {json.dumps(labels)}"] if labels else []),
        *(job.splitlines() or ['method = { name = "regmean", rows_factor = 1.0 }']),
        "[training]",
        "epochs = 2",
        "learning_rate = 1e-2",
        "max_length = 16",
    ]
    for number, owner in enumerate(owners):
        lines += ["[[owner]]", f'name = "{owner}"']
        names = (own_labels or {}).get(owner, labels)
        if names != labels:
            lines.append(f"labels = {json.dumps(names)}")
        for offset, (split, size) in enumerate((("train", 96), ("validation", 16), ("test", 32))):
            examples = examples_for(task, size, 10 * number + offset)
            path = folder / owner / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json_lines(examples, names, task))
            lines.append(f'{split} = "{owner}/{split}.jsonl"')
    file = folder / "federation.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def json_lines(examples: Examples, names: Sequence[str], task: Task = "single-label") -> str:
    """The examples as an owner's file has them.   names: of the labels."""
    rows: list[dict[str, object]] = []
    for text, label in zip(examples.texts, examples.labels, strict=True):
        if isinstance(text, Pair):
            rows.append(text._asdict())
        elif task == "causal-lm":
            rows.append({"text": text})
        elif task == "multi-label" and isinstance(label, tuple):
            labels = [name for name, holds in zip(names, label, strict=True) if holds]
            rows.append({"text": text, "labels": labels})
        elif isinstance(label, tuple):
            rows.append({"tokens": text, "tags": [names[index] for index in label]})
        else:
            rows.append({"text": text, "label": names[label] if type(label) is int else label})
    return "".join(json.dumps(row) + "\n" for row in rows)
