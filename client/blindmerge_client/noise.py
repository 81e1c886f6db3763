"""What an owner sends in a job with noise: its release, charged to the ledger of its examples.

Everything that can be refused is refused before any work. Then come the clipped integer sums,
which nobody sees; then the charge; then the noise. What is stored is what every retry sends.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from blindmerge.errors import DataInvalid, PolicyRefused
from blindmerge.manifest import Block, Group
from blindmerge.merge import Evidence, GramEvidence
from blindmerge.plan import Plan
from blindmerge.privacy.accountant import Cost
from blindmerge.privacy.mechanism import NoiseTerms, PrivateGrams, project
from blindmerge.privacy.terms import Noise, gram_groups, public_rows
from blindmerge.secagg.secret import OsRandomness
from blindmerge.statistic import Array, pack_symmetric, unpack_symmetric
from blindmerge_client.collect.private import Units, units_of
from blindmerge_client.collect.whitening import Whitening
from blindmerge_client.ledger import Budget, Ledger, subject_of

__all__ = ["Account", "NoisedGrams"]


@dataclass(frozen=True)
class Account:
    """Where an owner's examples are accounted, and how much may be spent of them.

    dataset: what the ledger calls them (`Examples.account`).
    persons: who is behind each example; None if the data do not say.
    """

    ledger: Ledger
    dataset: str
    budget: Budget
    persons: tuple[str, ...] | None = None


class NoisedGrams:
    """The Gram matrices of one job at one owner.

    own: hash of the owner's model.   examples: how many the owner has.
    Raises, before any work: DataInvalid for more examples than the plan's, or without persons
    where they are the unit; BudgetExhausted; PolicyRefused if there is no ledger, or if in
    "end-to-end" mode the model was not trained with enough noise on these examples; LedgerTampered.
    """

    def __init__(self, plan: Plan, noise: Noise, account: Account | None, own: str, examples: int):
        if account is None:
            raise PolicyRefused(
                "the plan has noise, and this owner has no ledger to charge it to",
                hint="give the owner an account",
            )
        self._plan, self._noise, self._account = plan, noise, account
        self._path: Path | None = None
        self._check_examples(account, examples)
        book = account.ledger.read(account.dataset)
        account.budget.check(book.spent_but_for(subject_of(plan)), noise.cost)
        if noise.mode == "end-to-end":
            training = book.training_of(bytes.fromhex(own))
            if training is None:
                raise PolicyRefused(
                    "this owner's model was not trained with noise on these examples",
                    hint="train it: blindmerge client train; or ask for noise in statistics only",
                )
            total = (noise.cost + Cost(trainings=(training,))).epsilon(noise.delta)
            if total > noise.epsilon:
                raise PolicyRefused(
                    f"training and statistics together cost epsilon {total:.4g}, "
                    f"the plan says {noise.epsilon:g} at most",
                    hint="train with more noise, or ask for a plan with a larger epsilon",
                )

    def _check_examples(self, account: Account, examples: int) -> None:
        if examples > self._plan.examples:
            raise DataInvalid(
                f"this owner has more examples than the {self._plan.examples} of the plan, and "
                "with noise every one has to count",
                hint="ask for a plan with a larger `examples`",
            )
        if self._noise.unit == "person" and account.persons is None:
            raise DataInvalid(
                "the plan protects persons, and the examples do not say whose they are",
                hint="add a column `person` to the training data",
            )

    @cached_property
    def terms(self) -> NoiseTerms:
        """Of the mechanism."""
        return self._noise.terms(self._plan.manifest, self._plan.max_length)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Those that are released."""
        return tuple(g for g in gram_groups(self._plan.manifest) if g.name in self.terms.groups)

    def units(self, examples: int) -> Units:
        """The units of this owner's examples."""
        persons = self._account.persons if self._noise.unit == "person" else None
        return units_of(examples, persons, self._noise.unit_examples)

    def evidence(
        self, block: Block, collect: Callable[[], PrivateGrams], whitening: Callable[[], Whitening]
    ) -> dict[str, GramEvidence]:
        """G~ of every group of the block; zeros for one that is not released.

        collect: makes the clipped sums, if there is no release yet.
        """
        if not block.groups or Evidence.GRAM not in self._plan.method.needs:
            return {}
        path, found = self._release(collect), {}
        with safe_open(path, framework="numpy") as file:
            for group in block.groups:
                if group.name in self.terms.groups:
                    found[group.name] = self._evidence(
                        group, file.get_tensor(group.name), whitening()
                    )
                else:
                    found[group.name] = GramEvidence(np.zeros((group.width, group.width)), 0)
        return found

    def _evidence(self, group: Group, packed: Array, whitening: Whitening) -> GramEvidence:
        """Post-processing (PROOF.md §7)."""
        masks = self._plan.masks
        ridge = self.terms.ridge(group.name, 1 if masks == "off" else masks.thresholds.owners)
        total = unpack_symmetric(project(packed, group.width, ridge), group.width)
        inverse = whitening.inverse(group.name)
        total = inverse @ total @ inverse
        # Exactly symmetric again, after two products that round.
        total = unpack_symmetric(pack_symmetric(total), group.width)
        rows = public_rows(group, self._plan.examples, self._plan.max_length)
        return GramEvidence(total, rows)

    def _release(self, collect: Callable[[], PrivateGrams]) -> Path:
        """The file of the release, made if there is none; its hash is checked once."""
        if self._path is None:
            account, subject = self._account, subject_of(self._plan)
            stored = account.ledger.read(account.dataset).find("stored", subject)
            grams = collect() if stored is None else None

            def draw(path: Path) -> None:
                if grams is None:
                    raise AssertionError("noise is drawn for a release that is stored")
                save_file(dict(grams.release(OsRandomness())), path)

            self._path = account.ledger.release(
                account.dataset,
                subject,
                cost=self._noise.cost,
                budget=account.budget,
                now=int(time.time()),
                make=draw,
            )
        return self._path
