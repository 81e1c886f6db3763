"""What noise costs: rho of zCDP, and epsilon at a delta (PROOF.md §6).

rho adds up over releases and is what a ledger counts. Epsilon is what people read; it is
computed from the sum of rho by `dp-accounting`, never added up.
"""

import math
from collections.abc import Callable

from dp_accounting import ComposedDpEvent, ZCDpEvent
from dp_accounting.rdp import RdpAccountant

from blindmerge.errors import ConfigInvalid

__all__ = [
    "check_delta",
    "epsilon_of",
    "event_of",
    "multiplier_for",
    "multiplier_of",
    "rho_for",
    "rho_of",
]

_LARGEST_RHO = 1e6
_STEPS = 100  # of a bisection: more than a float64 has bits


def rho_of(multiplier: float) -> float:
    """rho = 1 / (2 z^2) of one release with noise z times the clip, rounded up (§6.1).

    Raises ConfigInvalid for a multiplier that is not positive and finite.
    """
    _check_positive("noise multiplier", multiplier)
    return math.nextafter(0.5 / multiplier**2, math.inf)


def multiplier_of(rho: float) -> float:
    """z = 1 / sqrt(2 rho): the noise of one release that costs rho.

    Raises ConfigInvalid for a rho that is not positive and finite.
    """
    _check_positive("rho", rho)
    return 1.0 / math.sqrt(2.0 * rho)


def event_of(*rhos: float) -> ComposedDpEvent:
    """Releases with these rho, in the form of `dp-accounting`."""
    return ComposedDpEvent([ZCDpEvent(rho) for rho in rhos])


def epsilon_of(rho: float, delta: float) -> float:
    """epsilon at delta of releases that cost rho together; 0 for rho = 0 (§6.3).

    Raises ConfigInvalid for a rho that is negative or above a million, or a delta outside (0, 1).
    """
    _check_delta(delta)
    if not 0 <= rho <= _LARGEST_RHO:
        raise ConfigInvalid(f"rho {rho:g} is not between 0 and {_LARGEST_RHO:g}")
    if rho == 0:
        return 0.0
    return float(RdpAccountant().compose(event_of(rho)).get_epsilon(delta))


def rho_for(epsilon: float, delta: float) -> float:
    """The largest rho that `epsilon_of` reports as at most `epsilon`.

    Raises ConfigInvalid for an epsilon that is not positive, or so large that it protects
    nobody (above 100), or a delta outside (0, 1).
    """
    _check_delta(delta)
    if not 0 < epsilon <= 100:
        raise ConfigInvalid(
            f"epsilon {epsilon:g} is not between 0 and 100", hint="usual values are 0.5 to 8"
        )
    # epsilon >= rho: at a larger rho every delta below 1/2 costs more.
    return _largest(lambda rho: epsilon_of(rho, delta) <= epsilon, epsilon)


def multiplier_for(epsilon: float, delta: float) -> float:
    """z of one release that costs epsilon at delta; raises as `rho_for`."""
    return multiplier_of(rho_for(epsilon, delta))


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
