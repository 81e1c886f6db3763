"""What a guarantee covers, in plain words: never an epsilon that says less than a reader thinks."""

from typing import Literal

from blindmerge.privacy.terms import Noise

__all__ = ["NOT_COVERED", "guarantee"]

NOT_COVERED = (
    "Not covered: hyper-parameter search, early stopping and metrics on private data, and people "
    "with examples at several owners, for whom epsilon adds up."
)


def guarantee(noise: Noise | Literal["off"]) -> str:
    """What a job's noise promises, and what it does not (PROOF.md §1).

    Of one job: what the ledger of an owner's examples adds up is that owner's own.
    """
    if noise == "off":
        return "noise off: no guarantee for single examples; a sum can tell of them"
    whom = "example" if noise.unit == "example" else "person"
    price = f"({noise.epsilon:.3g}, {noise.delta:g}) per {whom}"
    if noise.mode == "end-to-end":
        return f"noise: {price} for everything that left an owner's machine. {NOT_COVERED}"
    if noise.grams is None:
        return (
            "noise: no statistics of texts leave an owner's machine, so there is nothing to add "
            "noise to. This does not cover the data that the owners fine-tuned on."
        )
    return (
        f"noise: {price} for the statistics, given the owners' fine-tuned weights. It does not "
        "cover the data they fine-tuned on, unless the statistics come from other examples."
    )
