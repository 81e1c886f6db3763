"""What noise costs: rho of zCDP, trainings, and epsilon at a delta (PROOF.md §6).

rho adds up over releases, and a training is described by three numbers: that is what a ledger
keeps. Epsilon is what people read; it is computed from all of it by `dp-accounting`, never added.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from blindmerge.errors import ConfigInvalid

if TYPE_CHECKING:
    from dp_accounting import ComposedDpEvent

__all__ = [
    "Cost",
    "Training",
    "check_delta",
    "epsilon_of",
    "event_of",
    "multiplier_for",
    "multiplier_of",
    "rho_for",
    "rho_of",
    "room",
    "training_for",
]

_LARGEST_RHO = 1e6
_STEPS = 100  # of a bisection: more than a float64 has bits
# Of sampled steps; a fraction's series is slow and may not converge. Every set of orders is safe.
_WHOLE_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512)


def rho_of(multiplier: float) -> float:
    """rho = 1 / (2 z^2) of one release with noise z times the clip, rounded up (§6.1).

    Raises ConfigInvalid for a multiplier that is not positive and finite.
    """
    _check_positive("noise multiplier", multiplier)
    return math.nextafter(0.5 / multiplier**2, math.inf)


def multiplier_of(rho: float) -> float:
    """z = 1 / sqrt(2 rho): the noise of one release that costs rho and not a rounding more.

    Raises ConfigInvalid for a rho that is not positive and finite.
    """
    _check_positive("rho", rho)
    multiplier = 1.0 / math.sqrt(2.0 * rho)
    while rho_of(multiplier) > rho:
        multiplier = math.nextafter(multiplier, math.inf)
    return multiplier


class Training(BaseModel):
    """DP-SGD as it is accounted (§6.5): Gaussian noise on a sum of clipped gradients, in steps.

    multiplier: of the noise, per clip.   rate: chance of a unit to be in a step, independent of
    all others.   steps: how many.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    multiplier: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
    rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1, lt=2**31)]


@dataclass(frozen=True, slots=True)
class Cost:
    """What several releases and trainings of the same units cost together.

    rho: of all zCDP releases, exactly.   trainings: each DP-SGD training.
    """

    rho: Fraction = Fraction(0)
    trainings: tuple[Training, ...] = ()

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.rho + other.rho, self.trainings + other.trainings)

    def epsilon(self, delta: float) -> float:
        """epsilon at delta (§6.3, §6.5); 0 if nothing was spent.   Raises as `epsilon_of`."""
        rho = float(self.rho)
        if self.rho > Fraction(rho):
            rho = math.nextafter(rho, math.inf)
        return _epsilon(rho, self.trainings, delta)


def event_of(*rhos: float, trainings: tuple[Training, ...] = ()) -> "ComposedDpEvent":
    """Releases with these rho, and trainings, in the form of `dp-accounting`."""
    # Imported late: it takes longer than all the rest, and a courier never asks.
    from dp_accounting import (
        ComposedDpEvent,
        GaussianDpEvent,
        PoissonSampledDpEvent,
        SelfComposedDpEvent,
        ZCDpEvent,
    )

    steps = [
        SelfComposedDpEvent(PoissonSampledDpEvent(t.rate, GaussianDpEvent(t.multiplier)), t.steps)
        for t in trainings
    ]
    return ComposedDpEvent([*(ZCDpEvent(rho) for rho in rhos), *steps])


def epsilon_of(rho: float, delta: float) -> float:
    """epsilon at delta of releases that cost rho together; 0 for rho = 0 (§6.3).

    Raises ConfigInvalid for a rho that is negative or above a million, or a delta outside (0, 1).
    """
    return _epsilon(rho, (), delta)


@lru_cache(maxsize=1024)
def _epsilon(rho: float, trainings: tuple[Training, ...], delta: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    _check_delta(delta)
    if not 0 <= rho <= _LARGEST_RHO:
        raise ConfigInvalid(f"rho {rho:g} is not between 0 and {_LARGEST_RHO:g}")
    if rho == 0 and not trainings:
        return 0.0
    event = event_of(*([rho] if rho else []), trainings=trainings)
    accountant = RdpAccountant(_WHOLE_ORDERS if trainings else None)
    return float(accountant.compose(event).get_epsilon(delta))


def rho_for(epsilon: float, delta: float) -> float:
    """The largest rho that `epsilon_of` reports as at most `epsilon`.

    Raises ConfigInvalid for an epsilon that is not positive, or so large that it protects
    nobody (above 100), or a delta outside (0, 1).
    """
    _check_delta(delta)
    _check_epsilon(epsilon)
    # epsilon >= rho: at a larger rho every delta below 1/2 costs more.
    return _largest(lambda rho: epsilon_of(rho, delta) <= epsilon, epsilon)


def multiplier_for(epsilon: float, delta: float) -> float:
    """z of one release that costs epsilon at delta; raises as `rho_for`."""
    return multiplier_of(rho_for(epsilon, delta))


def room(spent: Cost, epsilon: float, delta: float) -> float:
    """epsilon of the largest release that keeps all together at epsilon; 0 if none does."""
    if spent.epsilon(delta) >= epsilon:
        return 0.0
    rho = _largest(lambda rho: (spent + Cost(Fraction(rho))).epsilon(delta) <= epsilon, epsilon)
    return epsilon_of(rho, delta)


def training_for(
    epsilon: float, delta: float, rate: float, steps: int, rho: float = 0.0
) -> Training:
    """The DP-SGD with the least noise that, with releases of `rho`, costs at most epsilon at delta.

    Raises ConfigInvalid if epsilon is out of range or no noise is enough.
    """
    _check_epsilon(epsilon)

    def cost(inverse: float) -> float:
        training = Training(multiplier=1 / inverse, rate=rate, steps=steps)
        return _epsilon(rho, (training,), delta)

    # Bisected over 1 / multiplier, in which epsilon rises; four digits are enough.
    low, high = 1e-3, 1e2
    if cost(low) > epsilon:
        raise ConfigInvalid(
            f"no noise in training is enough for epsilon {epsilon:g} at delta {delta:g}",
            hint="choose a larger epsilon, or let the statistics cost less of it",
        )
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) <= epsilon else (low, middle)
    return Training(multiplier=1 / low, rate=rate, steps=steps)


def check_delta(delta: float, examples: int) -> None:
    """Raises ConfigInvalid for a delta outside (0, 1), or above 1 / examples.

    Above, a mechanism that publishes some example as it is would count as private.
    """
    _check_delta(delta)
    if delta * examples > 1:
        raise ConfigInvalid(
            f"delta {delta:g} is too large for {examples} examples",
            hint=f"choose a delta far below {1 / examples:.1g}, such as 1e-6",
        )


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigInvalid(f"delta {delta:g} is not between 0 and 1", hint="1e-6 is usual")


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon <= 100:
        raise ConfigInvalid(
            f"epsilon {epsilon:g} is not between 0 and 100", hint="usual values are 0.5 to 8"
        )


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigInvalid(f"{name} {value:g} is not positive", hint=f"choose a larger {name}")


def _largest(holds: Callable[[float], bool], high: float) -> float:
    """The largest number in (0, high] for which a monotone condition holds, from below."""
    low = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
