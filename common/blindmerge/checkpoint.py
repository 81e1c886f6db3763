"""Transformers checkpoints, read and written block by block with safetensors.

No torch: a server that only sums and solves does not need it, and nothing is unpickled.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from blindmerge import canonical
from blindmerge.errors import CheckpointInvalid, NotFinite, SchemaMismatch
from blindmerge.files import replacing
from blindmerge.manifest import ARCHITECTURES, Block, Manifest, describe, task_of
from blindmerge.statistic import Array
from blindmerge.tasks import LANGUAGE, Task
from blindmerge.tensorfile import DTYPES, Stored, is_weight, read_header, read_tensor
from blindmerge.tied import without_copies

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "Checkpoint",
    "CheckpointWriter",
    "Tensors",
    "read_json",
]

ADAPTER_CONFIG = "adapter_config.json"
"""What a peft adapter has in place of `config.json`."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""What it has in place of the weights."""

_TICK_NS = 2_000_000_000  # two changes of a file may look the same if they are as close as this

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Tensors in the dtype of the checkpoint."""

_HEAD = "model-head.safetensors"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What changes from save to save and says nothing about the function that the model computes.
_VOLATILE = {
    "_commit_hash",
    "_name_or_path",
    "dtype",
    "is_local",
    "local_files_only",
    "name_or_path",
    "torch_dtype",
    "transformers_version",
}
# Any of these decides which tokens a text has, or which numbers an image.
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
_COPIED = (".json", ".txt", ".model")  # config and tokenizer


class Checkpoint:
    """A folder with `config.json` and safetensors files, one or sharded.

    architecture: the class that loads it.
    labels: in the order of the head's outputs; empty if the config names none, and of a language
    model, whatever its config says.
    Numbers may be of any float dtype, tensor by tensor; they are merged in float64, and written
    in the dtype that the tensor has in the base.
    Raises CheckpointInvalid if the folder is not such a checkpoint, or its weights are quantised;
    only headers are read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
            raise CheckpointInvalid(
                f"'{path}' is an adapter, not a model with all its weights",
                hint="only an owner's own model can be one; give the base model here",
            )
        self.config = read_json(path / "config.json")
        architectures = self.config.get("architectures")
        if not isinstance(architectures, list) or not architectures:
            raise CheckpointInvalid(f"'{path / 'config.json'}' names no architecture")
        self.architecture = str(architectures[0])
        rules = ARCHITECTURES.get(self.architecture)
        speaks = rules is not None and LANGUAGE.issuperset(rules.tasks)
        self.labels = () if speaks else _labels(self.config, path)
        _check_not_quantised(self.config, path)
        self._stored: dict[str, Stored] = {}
        for file, names in _weight_files(path).items():
            self._read_file(file, names)
        self._stored = without_copies(self._stored, self.config)

    def _read_file(self, file: Path, expected: frozenset[str] | None) -> None:
        """expected: the names that the index promises in this file; None without an index."""
        found = read_header(file)
        promised = found.keys() if expected is None else {n for n in expected if is_weight(n)}
        if found.keys() != promised:
            odd = min(found.keys() ^ promised)
            raise CheckpointInvalid(f"'{file}' and the index disagree about the tensor '{odd}'")
        self._stored |= found

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by name."""
        return {name: stored.shape for name, stored in self._stored.items()}

    @property
    def task(self) -> Task:
        """What the model does.   Raises CheckpointInvalid if there are no rules for its class."""
        return task_of(self.architecture, self.config)

    @cached_property
    def manifest(self) -> Manifest:
        """Every tensor and its rule.

        Raises CheckpointInvalid if the head has not one output for each label (other errors:
        see `describe`).
        """
        manifest = describe(self.architecture, self.shapes)
        head = manifest.blocks[-1].groups[-1].layers[-1] if manifest.blocks[-1].groups else None
        if self.labels and head is not None and head.outputs != len(self.labels):
            raise CheckpointInvalid(
                f"the head '{head.name}' in '{self.path}' has {head.outputs} outputs, "
                f"config.json names {len(self.labels)} labels",
                hint="give id2label in config.json a name for each output of the head",
            )
        return manifest

    def read(self, names: Iterable[str]) -> dict[str, Array]:
        """The named tensors as float64.

        Raises CheckpointInvalid if one is missing or holds NaN or infinity.
        """
        return {name: array.astype(np.float64) for name, array in self.stored_numbers(names)}

    def dtype(self, name: str) -> npt.DTypeLike:
        """The dtype of a tensor in the file."""
        return DTYPES[self._stored[name].dtype]

    def stored_numbers(self, names: Iterable[str]) -> Iterable[tuple[str, npt.NDArray[Any]]]:
        """The named tensors in the dtypes of the file, one by one (errors: see `read`)."""
        for name in names:
            if name not in self._stored:
                raise CheckpointInvalid(f"'{self.path}' has no tensor '{name}'")
            array = read_tensor(self._stored[name], name)
            if not np.isfinite(array).all():
                # Not NotFinite: that is a peer's fault, and this message names a file of ours.
                raise CheckpointInvalid(
                    f"tensor '{name}' in '{self.path}' holds NaN or infinity",
                    hint="the training has diverged: train again with a lower learning rate",
                )
            yield name, array

    @cached_property
    def sha256(self) -> str:
        """Hash of what the model computes: config, tokenizer, names, dtypes and numbers.

        It does not depend on how the tensors are spread over files. This process reads a folder
        once, and again when a file of it has changed.
        Raises CheckpointInvalid if a tensor holds NaN or infinity.
        """
        stamps = _stamps(self.path)
        if max(ctime for *_, ctime in stamps) > time.time_ns() - _TICK_NS:
            return self._digest()
        return _sha256(self.path, stamps)

    def _digest(self) -> str:
        digest = hashlib.sha256(_stable(self.config))
        tokenizer = {
            name: (self.path / name).read_bytes()
            for name in _TOKENIZER_FILES
            if (self.path / name).is_file()
        }
        digest.update(canonical.encode(tokenizer))
        if (self.path / _TOKENIZER_CONFIG).is_file():
            digest.update(_stable(read_json(self.path / _TOKENIZER_CONFIG)))
        for name, stored in sorted(self._stored.items()):
            digest.update(canonical.encode([name, stored.dtype, stored.shape]))
            for _, array in self.stored_numbers([name]):
                # As bytes: bfloat16 is no dtype that Python's buffers know.
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


@lru_cache(maxsize=64)
def _sha256(path: Path, _of: tuple[tuple[str, int, int, int], ...]) -> str:
    return Checkpoint(path)._digest()


def _stamps(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes with the content of a file; nobody can set its ctime back."""
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, each.st_ino, each.st_size, each.st_ctime_ns) for name, each in found)


class CheckpointWriter:
    """Writes a merged checkpoint, one shard per block, in the base's dtypes.

    blocks: what it is merged in, every tensor once; those of the base's manifest if left out.
    head: has the tensors that no block has, and the labels; the base if left out.
    A shard is whole or absent; the index comes last, so an unfinished folder does not load.
    """

    def __init__(
        self,
        path: Path,
        base: Checkpoint,
        blocks: Sequence[Block] | None = None,
        head: Checkpoint | None = None,
    ) -> None:
        self.path = path
        self._base = base
        self._blocks = base.manifest.blocks if blocks is None else tuple(blocks)
        self._head = base if head is None else head

    def write(self, index: int, weights: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Writes block number `index`; returns its tensors in the dtypes of the base.

        Raises SchemaMismatch if names or shapes are not the block's, NotFinite if a
        number is not finite in that dtype.
        """
        block = self._blocks[index]
        if {name: array.shape for name, array in weights.items()} != block.shapes:
            raise SchemaMismatch(f"the tensors are not those of block '{block.name}'")
        with np.errstate(over="ignore"):
            cast = {name: weights[name].astype(self._base.dtype(name)) for name in block.shapes}
        for name, array in cast.items():
            if not np.isfinite(array).all():
                raise NotFinite(f"merged tensor '{name}' holds NaN or infinity")
        # The model is another from here on; without an index the folder does not load.
        (self.path / _INDEX).unlink(missing_ok=True)
        with replacing(self.path / self._shard(index)) as temporary:
            # Not save_file: it does not say why it fails, e.g. that the disk is full.
            temporary.write_bytes(save(cast, metadata={"format": "pt"}))
        return cast

    def read(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """The tensors of block number `index`, as written.   Raises CheckpointInvalid."""
        stored = read_header(self.path / self._shard(index))
        return {name: read_tensor(each, name) for name, each in stored.items()}

    def has(self, index: int) -> bool:
        """Whether block number `index` is written."""
        return (self.path / self._shard(index)).exists()

    def finish(self) -> None:
        """Adds config, tokenizer and index. Raises CheckpointInvalid if a block is missing."""
        missing = [b.name for i, b in enumerate(self._blocks) if not self.has(i)]
        if missing:
            raise CheckpointInvalid(f"'{self.path}' lacks the blocks {', '.join(missing)}")
        for file in sorted(self._base.path.iterdir()):
            if file.is_file() and file.suffix in _COPIED and file.name != _INDEX:
                with replacing(self.path / file.name) as temporary:
                    temporary.write_bytes(file.read_bytes())
        weight_map = {
            name: self._shard(number)
            for number, block in enumerate(self._blocks)
            for name in block.shapes
        }
        weight_map |= self._add_head(self._head.shapes.keys() - weight_map.keys())
        files = sorted(set(weight_map.values()))
        size_bytes = sum((self.path / file).stat().st_size for file in files)
        index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
        with replacing(self.path / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1, sort_keys=True))

    def _add_head(self, names: Collection[str]) -> dict[str, str]:
        """Writes what no block has; returns the file of each of these tensors."""
        if not names:
            return {}
        with replacing(self.path / _HEAD) as temporary:
            tensors = dict(self._head.stored_numbers(sorted(names)))
            temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
        with replacing(self.path / "config.json") as temporary:
            temporary.write_bytes((self._head.path / "config.json").read_bytes())
        return dict.fromkeys(names, _HEAD)

    def _shard(self, index: int) -> str:
        return f"model-{index + 1:05}-of-{len(self._blocks):05}.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.   Raises CheckpointInvalid if the file does not hold one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointInvalid(
            f"'{path}' is missing",
            hint="a checkpoint is a folder written by transformers' `save_pretrained`",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointInvalid(f"'{path}' is not a readable JSON file") from error
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"'{path}' does not hold a JSON object")
    return value


def _labels(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    by_id = config.get("id2label") or {}
    if not isinstance(by_id, dict) or by_id.keys() != {str(i) for i in range(len(by_id))}:
        raise CheckpointInvalid(
            f"id2label in '{path / 'config.json'}' does not number the labels 0, 1, 2 ..."
        )
    return tuple(str(by_id[str(index)]) for index in range(len(by_id)))


def _check_not_quantised(config: Mapping[str, Any], path: Path) -> None:
    found = config.get("quantization_config")
    if found:
        how = found.get("quant_method") if isinstance(found, dict) else None
        raise CheckpointInvalid(
            f"the weights in '{path}' are quantised" + (f" ({how})" if how else ""),
            hint="rounded to a few bits they cannot be merged: give the model in full precision, "
            "e.g. saved after `model.dequantize()`",
        )


def _stable(config: Mapping[str, Any]) -> bytes:
    """What of a configuration does not change from save to save."""
    kept = {key: config[key] for key in config.keys() - _VOLATILE}
    return json.dumps(kept, sort_keys=True).encode()


def _weight_files(path: Path) -> dict[Path, frozenset[str] | None]:
    """The files that hold tensors, each with the names that the index promises in it."""
    if (path / _WEIGHTS).is_file():
        return {path / _WEIGHTS: None}
    if not (path / _INDEX).is_file():
        raise CheckpointInvalid(
            f"'{path}' has no {_WEIGHTS}",
            hint="save the model with transformers' `save_pretrained`; pickles are not read",
        )
    weight_map = read_json(path / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointInvalid(f"'{path / _INDEX}' has no weight_map")
    names: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if Path(str(file)).name != file or not file or file == "..":
            raise CheckpointInvalid(f"'{path / _INDEX}' points outside its folder")
        names.setdefault(file, set()).add(name)
    return {path / file: frozenset(names[file]) for file in sorted(names)}
