"""Merge methods, one paper per file: contribution and solve side by side."""

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import Field

from blindmerge.merge.average import Average
from blindmerge.merge.fisher import Fisher
from blindmerge.merge.least_squares import LeastSquares
from blindmerge.merge.method import (
    BlockEvidence,
    CrossGramEvidence,
    Evidence,
    GramEvidence,
    LayerReport,
    MergeMethod,
    Products,
    Solved,
    Weights,
)
from blindmerge.merge.progressive import Progressive
from blindmerge.merge.regmean import RegMean
from blindmerge.merge.regmean_plus_plus import RegMeanPlusPlus
from blindmerge.merge.task_arithmetic import TaskArithmetic
from blindmerge.merge.ties import Ties

__all__ = [
    "METHODS",
    "AnyMethod",
    "Average",
    "BlockEvidence",
    "CrossGramEvidence",
    "Evidence",
    "Fisher",
    "GramEvidence",
    "LayerReport",
    "LeastSquares",
    "MergeMethod",
    "Products",
    "Progressive",
    "RegMean",
    "RegMeanPlusPlus",
    "Solved",
    "TaskArithmetic",
    "Ties",
    "Weights",
]

AnyMethod: TypeAlias = Annotated[
    Average | TaskArithmetic | Fisher | RegMean | RegMeanPlusPlus | Progressive | Ties,
    Field(discriminator="name"),
]

METHODS: Mapping[str, MergeMethod] = {
    "average": Average(),
    "task-arithmetic": TaskArithmetic(),
    "fisher": Fisher(),
    "regmean": RegMean(),
    "regmean++": RegMeanPlusPlus(),
    "progressive": Progressive(),
    "ties": Ties(),
}
"""Every method with its default options."""
