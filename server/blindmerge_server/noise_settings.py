"""The `[noise]` table of a federation or job: what a person says about noise."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blindmerge.privacy.accountant import multiplier_for, multiplier_of, rho_for, rho_of
from blindmerge.privacy.terms import NoiseMode, Unit

__all__ = ["NoiseSettings"]

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")


class NoiseSettings(BaseModel):
    """How much noise, and for whom. Clip and weights of layers follow from public numbers."""

    model_config = _STRICT
    mode: NoiseMode = Field(description='what gets noise: "statistics", or "end-to-end"')
    epsilon: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = Field(
        default=None, description="what a job may cost an example at most, e.g. 4.0; or multiplier"
    )
    multiplier: Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)] | None = Field(
        default=None, description="noise of the statistics per clip, instead of epsilon"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-6, description="far below 1 / examples"
    )
    unit: Unit = Field(
        default="example", description='"example", or "person": the data have a column `person`'
    )
    unit_examples: Annotated[int, Field(ge=1, le=1 << 14)] = Field(
        default=1, description="so many examples of a person count at most"
    )
    clip: Annotated[float, Field(ge=2.0**-64, le=2.0**64, allow_inf_nan=False)] | None = Field(
        default=None, description="largest joint norm of a unit; leave out for that of public text"
    )
    gradient_clip: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = Field(
        default=1.0, description='largest norm of a unit\'s gradient in "end-to-end" training'
    )
    layers: Literal["auto", "all"] = Field(
        default="auto", description='"auto" averages layers that noise would drown'
    )
    statistics_part: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description='of rho in "end-to-end" mode; the rest is for training'
    )

    @model_validator(mode="after")
    def _one_amount(self) -> "NoiseSettings":
        if (self.epsilon is None) == (self.multiplier is None):
            raise ValueError("give either epsilon or multiplier")
        if self.mode == "end-to-end" and self.epsilon is None:
            raise ValueError('"end-to-end" needs epsilon, which training and statistics share')
        return self

    @property
    def statistics_multiplier(self) -> float:
        """z of the statistics."""
        if self.multiplier is not None:
            return self.multiplier
        if self.epsilon is None:
            raise AssertionError("either epsilon or multiplier is given")
        if self.mode == "statistics":
            return multiplier_for(self.epsilon, self.delta)
        return multiplier_of(self.statistics_part * rho_for(self.epsilon, self.delta))

    @property
    def statistics_rho(self) -> float:
        """What the statistics cost."""
        return rho_of(self.statistics_multiplier)
