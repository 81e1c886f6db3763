"""Costs agree with formulas that `dp-accounting` does not share."""

import math
from fractions import Fraction

import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_ndtr

from blindmerge.errors import ConfigInvalid
from blindmerge.privacy.accountant import (
    Cost,
    Training,
    check_delta,
    epsilon_of,
    event_of,
    multiplier_for,
    multiplier_of,
    rho_for,
    rho_of,
    training_for,
)

DELTA = 1e-6
# Of the continuous Gaussian, by its exact trade-off (Balle and Wang 2018): no proof for zCDP
# can need less.
TABLE = [(0.5, 8.06), (1.0, 4.23), (2.0, 2.23), (4.0, 1.19), (8.0, 0.653)]


def _epsilon_by_minimum(rho: float, delta: float) -> float:
    """Canonne, Kamath and Steinke 2020, Corollary 13: the best order, by a search."""

    def at(log_order: float) -> float:
        order = 1 + math.exp(log_order)
        return (
            order * rho + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        )

    return max(0.0, float(minimize_scalar(at, bounds=(-5, 12), method="bounded").fun))


def _delta_of_gaussian(multiplier: float, epsilon: float) -> float:
    """Balle and Wang 2018, Theorem 8."""
    half, shift = 0.5 / multiplier, epsilon * multiplier
    return math.exp(log_ndtr(half - shift)) - math.exp(epsilon + log_ndtr(-half - shift))


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-6, 1e-9])
def test_epsilon_is_the_minimum_over_all_orders(rho: float, delta: float) -> None:
    # dp-accounting tries a grid of orders a, at most a factor of 2 apart. Of a rho + L / a the
    # best is 2 sqrt(rho L); an order off by sqrt(2) costs (sqrt(2) + 1 / sqrt(2)) / 2 times that.
    best, ours = _epsilon_by_minimum(rho, delta), epsilon_of(rho, delta)
    assert best * (1 - 1e-6) <= ours <= best * 1.0607


@pytest.mark.parametrize(("epsilon", "gaussian"), TABLE)
def test_multipliers_against_two_formulas(epsilon: float, gaussian: float) -> None:
    ours = multiplier_for(epsilon, DELTA)
    best = brentq(lambda z: _epsilon_by_minimum(0.5 / z**2, DELTA) - epsilon, 0.1, 50)
    assert best * (1 - 1e-6) <= ours <= best * 1.01
    exact = brentq(lambda z: _delta_of_gaussian(z, epsilon) - DELTA, 0.1, 50)
    assert exact == pytest.approx(gaussian, abs=0.006)
    # The price of a bound that holds for integers, in any number of dimensions.
    assert exact < ours < 1.09 * exact


def test_rho_and_multiplier_are_inverse_and_rho_is_never_too_small() -> None:
    for multiplier in (0.3, 1.0, 2.23, 8.06):
        assert 2 * rho_of(multiplier) * multiplier**2 >= 1
        assert multiplier_of(rho_of(multiplier)) == pytest.approx(multiplier, rel=1e-14)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 4.0, 8.0])
def test_the_multiplier_of_a_target_costs_no_rounding_more(epsilon: float) -> None:
    rho = rho_of(multiplier_for(epsilon, DELTA))
    assert epsilon * (1 - 1e-9) < epsilon_of(rho, DELTA) <= epsilon


def test_what_a_target_allows_stays_below_it() -> None:
    for epsilon in (0.01, 0.5, 8.0, 100.0):
        rho = rho_for(epsilon, DELTA)
        assert epsilon * (1 - 1e-9) < epsilon_of(rho, DELTA) <= epsilon


def test_releases_add_up_in_rho() -> None:
    from dp_accounting.rdp import RdpAccountant

    one_by_one = RdpAccountant().compose(event_of(0.1, 0.02, 0.3)).get_epsilon(DELTA)
    assert one_by_one == pytest.approx(epsilon_of(0.42, DELTA), rel=1e-12)
    assert epsilon_of(0.0, DELTA) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(ConfigInvalid, match="delta"):
        epsilon_of(1.0, delta)
    with pytest.raises(ConfigInvalid, match="delta"):
        rho_for(1.0, delta)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 101.0, math.nan, math.inf])
def test_epsilon_out_of_range(epsilon: float) -> None:
    with pytest.raises(ConfigInvalid, match="epsilon"):
        multiplier_for(epsilon, DELTA)


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf])
def test_rho_and_multiplier_out_of_range(number: float) -> None:
    for function in (rho_of, multiplier_of):
        with pytest.raises(ConfigInvalid, match="not positive"):
            function(number)
    if number != 0:
        with pytest.raises(ConfigInvalid, match="rho"):
            epsilon_of(number, DELTA)


def test_delta_above_one_in_the_examples_is_refused() -> None:
    check_delta(1e-6, 1_000_000)
    with pytest.raises(ConfigInvalid, match="too large for 1001 examples"):
        check_delta(1e-3, 1001)


def test_a_step_that_takes_everybody_is_a_gaussian_release() -> None:
    # Whole orders only: the best order of a rho + L / a may be missed by half of one.
    step = Cost(trainings=(Training(multiplier=2.0, rate=1.0, steps=8),)).epsilon(DELTA)
    assert _epsilon_by_minimum(1.0, DELTA) * (1 - 1e-6) <= step <= epsilon_of(1.0, DELTA) * 1.05


def test_sampling_steps_and_noise_cost_what_they_should() -> None:
    def cost(multiplier: float, rate: float, steps: int) -> float:
        return Cost(trainings=(Training(multiplier=multiplier, rate=rate, steps=steps),)).epsilon(
            DELTA
        )

    middle = cost(1.0, 0.05, 100)
    assert cost(1.1, 0.05, 100) < middle < cost(0.9, 0.05, 100)
    assert cost(1.0, 0.04, 100) < middle < cost(1.0, 0.06, 100)
    assert cost(1.0, 0.05, 99) < middle < cost(1.0, 0.05, 101)


def test_a_training_and_a_release_add_up_order_by_order() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    training = Training(multiplier=1.2, rate=0.1, steps=30)
    step = PoissonSampledDpEvent(0.1, GaussianDpEvent(1.2))
    orders = list(range(2, 65))
    curve = RdpAccountant(orders).compose(SelfComposedDpEvent(step, 30))
    together = curve.compose(event_of(0.2)).get_epsilon(DELTA)
    ours = (Cost(Fraction(0.2)) + Cost(trainings=(training,))).epsilon(DELTA)
    assert ours == pytest.approx(together, rel=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.01])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_noise_of_a_training_is_just_enough(epsilon: float, rho: float) -> None:
    training = training_for(epsilon, DELTA, rate=0.1, steps=60, rho=rho)
    cost = Cost(Fraction(rho), (training,))
    assert 0.99 * epsilon < cost.epsilon(DELTA) <= epsilon


def test_a_training_that_nothing_is_left_for_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="no noise in training is enough"):
        training_for(1.0, DELTA, rate=0.1, steps=60, rho=rho_for(1.0, DELTA))
