"""One job at one owner, from top to bottom: what is read, what is computed, what leaves.

A session makes the statistic of each block of the plan and keeps the merged tensors that it
is sent. All its state lies in its folder, so that a process that died can be started again.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from blindmerge import canonical
from blindmerge.checkpoint import Checkpoint, CheckpointWriter, Tensors
from blindmerge.errors import ConfigInvalid, DataInvalid, PeerInvalid, SchemaMismatch
from blindmerge.files import replacing
from blindmerge.fine_tuned import check_fine_tuned
from blindmerge.manifest import Block
from blindmerge.merge import (
    BlockEvidence,
    CrossGramEvidence,
    Evidence,
    GramEvidence,
    LeastSquares,
    Products,
)
from blindmerge.plan import Plan
from blindmerge.privacy.mechanism import PrivateGrams
from blindmerge.statistic import Array, Statistic
from blindmerge_client.adapters import full_weights
from blindmerge_client.batches import Batch, batches
from blindmerge_client.collect.fisher import collect_fisher, read_fisher
from blindmerge_client.collect.gram import (
    collect_cross_grams,
    collect_grams,
    collect_merged_grams,
)
from blindmerge_client.collect.live import put_merged
from blindmerge_client.collect.private import collect_private_grams
from blindmerge_client.collect.runner import BlockRunner
from blindmerge_client.collect.whitening import Whitening
from blindmerge_client.models import (
    best_device,
    check_max_length,
    is_processor,
    load_model,
    load_tokenizer,
)
from blindmerge_client.noise import Account, NoisedGrams
from blindmerge_client.progress import Watch, unwatched
from blindmerge_client.tasks import Text, contents

__all__ = ["Session"]

_MERGED_STATES = "merged-states"
_BATCH_SIZE = 64


class Session:
    """An owner's part in one job.

    base: the checkpoint that the plan names.   own: the owner's fine-tuned one, or a LoRA adapter.
    texts: the owner's examples; the plan's first `examples` of them are used.
    account: where noise is charged; without one there is no plan with noise.
    folder: private to this job and owner; created if missing.
    watch: shows how far work on all texts is.

    Raises PeerInvalid if the plan does not fit the base, CheckpointInvalid if `own` does
    not, DataInvalid if there is no text, or if the folder was made for another model or other
    texts; all before any work.
    """

    def __init__(
        self,
        plan: Plan,
        base: Path,
        own: Path,
        texts: Sequence[Text],
        folder: Path,
        account: Account | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self.plan = plan
        self._watch = watch
        self._base = Checkpoint(base)
        self.folder = folder
        self._check_plan()
        self._own = Checkpoint(full_weights(own, base, folder))
        check_fine_tuned(self._own, self._base, plan.manifest.kept)
        if not texts:
            raise DataInvalid("there are no examples to collect statistics from")
        self._noised = (
            NoisedGrams(plan, plan.noise, account, self._own.sha256, len(texts))
            if plan.noise != "off"
            else None
        )
        self._texts = tuple(texts[: plan.examples])
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._bind_folder()
        self._writer = CheckpointWriter(folder / "merged", self._base, plan.blocks, self._own)

    def _check_plan(self) -> None:
        # The coordinator reads these messages: no path of ours.
        if self._base.sha256 != self.plan.base:
            raise PeerInvalid(
                "the plan is for another base model than this owner's",
                hint="get the base model that the coordinator announced, or ask for the right plan",
            )
        whole, kept = self._base.manifest, self.plan.manifest.kept
        manifest, labels = (whole.with_head_kept, ()) if kept else (whole, self._base.labels)
        if (manifest, labels) != (self.plan.manifest, self.plan.labels):
            raise PeerInvalid("the plan's tensors or labels are not those of its base model")
        self._check_max_length()

    def _check_max_length(self) -> None:
        try:
            check_max_length(self._base.path, self.plan.max_length)
        except ConfigInvalid as error:
            raise PeerInvalid("the plan's max_length is more than its base model takes") from error
        # With no room for one word beside its special tokens a tokenizer cuts nothing at all.
        tokenizer = self._tokenizer
        special = 0 if is_processor(tokenizer) else tokenizer.num_special_tokens_to_add()
        if self.plan.max_length <= special:
            raise PeerInvalid(f"the plan's max_length is not above {special} special tokens")

    def _bind_folder(self) -> None:
        """Half a job from one model or text and half from another would be neither's."""
        inputs = hashlib.sha256(
            canonical.encode([self._own.sha256, contents(self._texts)])
        ).hexdigest()
        note = self.folder / "inputs.sha256"
        if not note.exists():
            with replacing(note) as temporary:
                temporary.write_text(inputs)
        elif note.read_text() != inputs:
            raise DataInvalid(
                f"the model or the examples changed since the job in '{self.folder}' began",
                hint="put them back, or ask the coordinator for a new job",
            )

    def contribute(self, block: int) -> Statistic:
        """What this owner adds to the sum for block number `block`; the plan fixes its schema.

        Raises PeerInvalid if the plan has no such block. Asking again gives the same answer.
        """
        return self.plan.method.contribution(self._block(block), self.evidence(block))

    def evidence(self, block: int) -> BlockEvidence:
        """All that the plan's method needs to know of a block. It stays here."""
        asked = self._block(block)
        return BlockEvidence(
            base=self._base.read(asked.shapes),
            own=self._own.read(asked.shapes),
            tokens=sum(batch.tokens for batch in self._batches),
            grams=self._grams(asked),
            fishers=self._fishers(asked),
            cross_grams=self._cross_grams(block),
            merged_grams=self._merged_grams(block),
        )

    def receive(self, merged: Tensors) -> None:
        """Keeps merged tensors, those of one block or of several.

        Raises PeerInvalid, also as SchemaMismatch or NotFinite, if they are not just the tensors
        of some blocks of the plan.
        """
        unknown = merged.keys() - {name for block in self.plan.blocks for name in block.shapes}
        if unknown:
            raise SchemaMismatch(f"{len(unknown)} merged tensors are not in the plan")
        for number, block in enumerate(self.plan.blocks):
            if not block.shapes.keys().isdisjoint(merged):
                tensors = {name: merged[name] for name in block.shapes if name in merged}
                if self._writer.has(number):
                    # The job runs again: what was computed from the old tensors is void.
                    shutil.rmtree(self.folder / _MERGED_STATES, ignore_errors=True)
                self._writer.write(number, tensors)

    def finish(self) -> Path:
        """The merged checkpoint, complete. Raises CheckpointInvalid if a block is missing."""
        self._writer.finish()
        return self.folder / "merged"

    def _block(self, number: int) -> Block:
        if not 0 <= number < len(self.plan.blocks):
            raise PeerInvalid(f"there is no block {number}: the plan has {len(self.plan.blocks)}")
        return self.plan.blocks[number]

    @cached_property
    def _model(self) -> PreTrainedModel:
        return _loaded(self._own.path)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's, whose hash the plan binds; an owner's copy might differ."""
        return load_tokenizer(self._base.path)

    @cached_property
    def _batches(self) -> list[Batch]:
        if not self.plan.method.halves:
            return self._batched(self._texts, _BATCH_SIZE)
        return [
            replace(batch, fold=fold)
            for fold in (0, 1)
            for batch in self._batched(self._texts[fold::2], _BATCH_SIZE)
        ]

    def _batched(self, texts: Sequence[Text], size: int) -> list[Batch]:
        return batches(self._tokenizer, texts, self.plan.max_length, size)

    @cached_property
    def _runner(self) -> BlockRunner:
        return self._runner_of(self._model, "states")

    @cached_property
    def _merged_runner(self) -> BlockRunner:
        """Of the model merged so far; what is not merged yet is the owner's."""
        return self._runner_of(_loaded(self._own.path), _MERGED_STATES)

    def _runner_of(self, model: PreTrainedModel, states: str) -> BlockRunner:
        manifest, folder = self.plan.manifest, self.folder / states
        return BlockRunner(
            model, manifest.modules, self._batches, folder, manifest.repeated, self._watch
        )

    def _grams(self, block: Block) -> dict[str, GramEvidence]:
        if self._noised is not None:
            return self._noised.evidence(block, self._private_grams, self._whitening)
        if Evidence.GRAM not in self.plan.method.needs:
            return {}
        return collect_grams(self._model, self._runner, block, self._products)

    @property
    def _products(self) -> Products:
        method = self.plan.method
        return method.products if isinstance(method, LeastSquares) else "float64"

    def _private_grams(self) -> PrivateGrams:
        """The clipped sums of all layers at once, which leave only with noise."""
        if self._noised is None:
            raise AssertionError("the plan has no noise")
        groups, terms = self._noised.groups, self._noised.terms
        units = self._noised.units(len(self._texts))
        alone = self._batched(self._texts, 1)
        return collect_private_grams(
            self._model, groups, alone, units, self._whitening(), terms, self._watch
        )

    def _whitening(self) -> Whitening:
        folder = self.folder / "whitening"
        if folder.is_dir() or self._noised is None:
            return Whitening(folder)
        base = load_model(self._base.path)
        groups, length = self._noised.groups, self.plan.max_length
        return Whitening.make(base, self._tokenizer, groups, length, folder)

    def _cross_grams(self, number: int) -> dict[str, CrossGramEvidence]:
        if Evidence.CROSS_GRAM not in self.plan.method.needs:
            return {}
        merged, block = self._merged_before(number), self._block(number)
        return collect_cross_grams(merged, self._runner, block, self._products)

    def _merged_grams(self, number: int) -> dict[str, GramEvidence]:
        if Evidence.MERGED_GRAM not in self.plan.method.needs:
            return {}
        merged, block = self._merged_before(number), self._block(number)
        return collect_merged_grams(merged, block, self._products)

    def _merged_before(self, number: int) -> BlockRunner:
        """The model in which all before block `number` is merged, and nothing else."""
        runner = self._merged_runner
        for before in range(number):
            if not self._writer.has(before):
                raise PeerInvalid(f"block {number} is asked for before block {before} is delivered")
            put_merged(runner.model, self.plan.blocks[before], self._writer.read(before))
        return runner

    def _fishers(self, block: Block) -> dict[str, Array]:
        names = self.plan.method.informed(block)
        return read_fisher(self._fisher_folder, block, names) if names else {}

    @cached_property
    def _fisher_folder(self) -> Path:
        """With the information of all blocks, since one pass over the examples has all of it."""
        plan, method, folder = self.plan, self.plan.method, self.folder / "fisher"
        wanted = [(block, method.informed(block)) for block in plan.blocks]
        alone = self._batched(self._texts[: method.informed_by], 1)
        collect_fisher(self._model, plan.task, wanted, alone, folder, self._watch)
        return folder


def _loaded(path: Path) -> PreTrainedModel:
    """The model, on a GPU if there is one."""
    model: Any = load_model(path)
    return cast(PreTrainedModel, model.to(best_device()))
