"""The ridge solve: ill-conditioned, indefinite and spoilt matrices, towards a mean."""

from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
from scipy.linalg import cho_solve

from blindmerge.merge import ridge
from blindmerge.merge.ridge import Solution, solve_ridge
from blindmerge.statistic import Array, pack_symmetric

EPS = 2.0**-52


def solve(matrix: Array, target: Array, ridge: float) -> Solution | None:
    """Towards zero."""
    return solve_ridge(pack_symmetric(matrix), target, np.zeros_like(target), ridge)


def ill_conditioned(rng: np.random.Generator, condition: float, width: int = 6) -> Array:
    """A symmetric matrix with a condition number of about `condition`, also when scaled."""
    q, _ = np.linalg.qr(rng.standard_normal((width, width)))
    matrix = (q * np.geomspace(1.0, 1.0 / condition, width)) @ q.T
    return np.asarray((matrix + matrix.T) / 2)


def exact_solution(matrix: Array, target: Array) -> Array:
    """Gaussian elimination in rational numbers: no rounding before the last step."""
    rows = [
        [Fraction(float(v)) for v in (*left, *right)]
        for left, right in zip(matrix, target, strict=True)
    ]
    for step, pivot in enumerate(rows):
        for other in rows:
            if other is not pivot:
                factor = other[step] / pivot[step]
                other[:] = [a - factor * b for a, b in zip(other, pivot, strict=True)]
    solved = [[value / row[i] for value in row[len(rows) :]] for i, row in enumerate(rows)]
    return np.array([[float(value) for value in row] for row in solved])


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e8])
def test_ill_conditioned_solve_keeps_its_digits(condition: float) -> None:
    rng = np.random.default_rng(6)
    matrix, width = ill_conditioned(rng, condition), 6
    target = matrix @ rng.standard_normal((width, 4))
    solved = solve(matrix, target, 0.0)
    assert solved is not None
    solution, reported = solved.weights, solved.condition_number
    assert solved.ridge == 0.0
    # Higham 2002, theorem 10.4: |residual| <= 8 width (width + 1) u |A| |x|, whatever the
    # condition number; the 1-norms and the scaling cost another width each.
    residual = np.abs(matrix @ solution - target).max()
    limit = 4 * width**2 * EPS * width**2 * np.abs(matrix).max() * np.abs(solution).max()
    assert residual <= limit
    exact = exact_solution(matrix, target)
    scale = np.abs(exact).max()
    error = np.abs(solution - exact).max() / scale
    assert error <= 4 * width**2 * EPS * 3 * reported
    if condition >= 1e8:
        inverse = np.linalg.inv(matrix.astype(np.float32)) @ target.astype(np.float32)
        assert np.abs(inverse - exact).max() / scale > 0.1, "what the references do"


def test_condition_number_is_lapacks_estimate_of_the_scaled_matrix() -> None:
    rng = np.random.default_rng(8)
    for condition in (1e1, 1e4, 1e7):
        matrix = ill_conditioned(rng, condition, width=12)
        solved = solve(matrix, np.ones((12, 1)), 0.0)
        assert solved is not None
        jacobi = 1 / np.sqrt(np.diagonal(matrix))
        truth = float(np.linalg.cond(matrix * np.outer(jacobi, jacobi), 1))
        assert truth / 3 <= solved.condition_number <= truth * (1 + condition * 1e3 * EPS)


def test_condition_number_is_in_the_1_norm() -> None:
    # All columns are alike, so LAPACK's estimate meets the largest one and is exact. The 1-norm
    # is 1.8 and the 2-norm 1.4.
    matrix = np.full((3, 3), -0.4) + 1.4 * np.eye(3)
    solved = solve(matrix, np.ones((3, 1)), 0.0)
    assert solved is not None
    assert solved.condition_number == pytest.approx(float(np.linalg.cond(matrix, 1)), rel=1e-12)


@pytest.mark.parametrize("width", [5, 300])
@pytest.mark.parametrize("largest", [0, -1])
def test_condition_number_is_of_whole_columns_not_of_a_triangles(width: int, largest: int) -> None:
    # Of the first column the upper triangle has one number, of the last the lower triangle.
    matrix = np.eye(width)
    matrix[largest, :] = matrix[:, largest] = -0.85 / np.sqrt(width - 1)
    matrix[largest, largest] = 1.0
    solved = solve(matrix, np.ones((width, 1)), 0.0)
    assert solved is not None
    assert solved.condition_number == pytest.approx(float(np.linalg.cond(matrix, 1)), rel=1e-9)


@pytest.mark.parametrize("condition", [1e13, 1e15, 1e20])
def test_solution_without_three_right_digits_is_not_accepted(condition: float) -> None:
    matrix = ill_conditioned(np.random.default_rng(9), condition)
    solved = solve(matrix, np.ones((6, 2)), 0.0)
    assert solved is not None
    solution, ridge, reported = solved.weights, solved.ridge, solved.condition_number
    assert 6 * EPS * reported <= 1e-3
    assert 0 < ridge < 1e-9
    shifted = matrix + ridge * np.mean(np.diagonal(matrix)) * np.eye(6)
    exact = exact_solution(shifted, np.ones((6, 2)))
    # The bound of the acceptance, with the factor of three of the estimate.
    assert np.abs(solution - exact).max() <= 3e-3 * np.abs(exact).max()


def test_asked_ridge_is_used_however_large() -> None:
    gram = ill_conditioned(np.random.default_rng(10), 10.0)
    for asked in (1e4, 1e9):
        solved = solve(gram, np.ones((6, 1)), asked)
        assert solved is not None
        solution, reported = solved.weights, solved.condition_number
        assert solved.ridge == asked
        expected = 1 / (asked * np.mean(np.diagonal(gram)))
        np.testing.assert_allclose(solution, expected, rtol=6 / asked + 6 * EPS)
        # A = I + E with |E|_1 <= width^2 / asked.
        assert reported == pytest.approx(1.0, rel=3 * 36 / asked + 1e-12)


def test_indefinite_sum_is_ridged_until_it_is_definite() -> None:
    """Rounding or noise can push eigenvalues of a sum below zero."""
    q, _ = np.linalg.qr(np.random.default_rng(12).standard_normal((6, 6)))
    matrix = (q * [2.0, 1.5, 1.0, 1.0, 0.5, -0.001]) @ q.T
    matrix = (matrix + matrix.T) / 2
    solved = solve(matrix, np.ones((6, 1)), 0.0)
    assert solved is not None
    solution, ridge = solved.weights, solved.ridge
    shift = np.mean(np.diagonal(matrix))
    assert 0.001 < ridge * shift <= 0.01 * (1 + 1e-9), "the first tenfold step that suffices"
    exact = exact_solution(matrix + ridge * shift * np.eye(6), np.ones((6, 1)))
    np.testing.assert_allclose(solution, exact, rtol=1e-9)


@pytest.mark.parametrize(
    "matrix",
    [np.zeros((3, 3)), -np.eye(3), np.diag([1.0, 1.0, -2.0]), np.diag([1.0, 1.0, -5.0])],
    ids=["zero", "negative", "traceless", "negative trace"],
)
def test_matrix_without_a_positive_trace_is_not_solved(matrix: Array) -> None:
    assert solve(matrix, np.ones((3, 1)), 0.1) is None


def test_matrix_whose_off_diagonal_dwarfs_its_diagonal_is_not_solved() -> None:
    matrix = np.full((3, 3), 1e200)
    np.fill_diagonal(matrix, 1e-200)
    assert solve(matrix, np.ones((3, 1)), 0.0) is None


@pytest.mark.parametrize("order", ["C", "F"])
def test_solve_leaves_its_arguments_alone(order: str) -> None:
    gram = pack_symmetric(ill_conditioned(np.random.default_rng(13), 1e18))
    moment = np.full((6, 2), 1.0, order="F" if order == "F" else "C")
    mean = 2.0 * moment
    before = [array.copy() for array in (gram, moment, mean)]
    solve_ridge(gram, moment, mean, 0.1)
    for array, old in zip((gram, moment, mean), before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("ridge", [0.0, 0.1, 1e6])
def test_the_ridge_pulls_towards_the_mean(ridge: float) -> None:
    rng = np.random.default_rng(14)
    x = rng.standard_normal((20, 6))
    gram, mean, own = x.T @ x, rng.standard_normal((2, 6, 3))[0], rng.standard_normal((6, 3))
    solved = solve_ridge(pack_symmetric(gram), gram @ own, mean, ridge)
    assert solved is not None
    shift = ridge * np.mean(np.diagonal(gram))
    # The other form of the equation, and another solver.
    system = gram + shift * np.eye(6)
    expected = mean + np.linalg.solve(system, gram @ own - gram @ mean)
    condition = float(np.linalg.cond(system))
    np.testing.assert_allclose(solved.weights, expected, rtol=0, atol=36 * condition * 8 * EPS)


@pytest.mark.parametrize("condition", [1e6, 1e8, 1e10, 1e12])
def test_residual_is_that_of_rounding_whatever_the_condition_number(condition: float) -> None:
    rng = np.random.default_rng(15)
    width = 40
    matrix = ill_conditioned(rng, condition, width)
    target = matrix @ rng.standard_normal((width, 6))
    solved = solve(matrix, target, 0.0)
    assert solved is not None
    # 40 * 2^-52 * 1e12 would leave two digits, so there is a small ridge.
    assert (solved.ridge == 0.0) == (condition < 1e12)
    assert solved.ridge < 1e-8
    matrix = matrix + solved.ridge * np.mean(np.diagonal(matrix)) * np.eye(width)

    def residual(weights: Array) -> float:
        """Of all columns, with numbers of 64 bits or more."""
        wide = matrix.astype(np.longdouble) @ weights.astype(np.longdouble) - target
        return float(np.linalg.norm(wide.astype(np.float64)) / np.linalg.norm(target))

    # Higham 2002, theorem 10.4, as in the test above; |A| |x| is the target's size or so.
    assert residual(solved.weights) <= 8 * width * (width + 1) * EPS
    # What is reported is a probe of it, with rounding of its own.
    assert solved.residual <= 8 * width * (width + 1) * EPS
    inverse = np.linalg.inv(matrix.astype(np.float32)) @ target.astype(np.float32)
    assert residual(inverse.astype(np.float64)) >= 100 * residual(solved.weights)


def test_residual_tells_a_wrong_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(16)
    matrix = ill_conditioned(rng, 1e3, 40)

    def slightly_wrong(upper: Array, target: Array) -> Array:
        weights = np.array(cho_solve((upper, False), target))
        weights[3, 2] *= 1 + 1e-6
        return weights

    monkeypatch.setattr(ridge, "_substituted", slightly_wrong)
    solved = solve(matrix, rng.standard_normal((40, 6)), 0.0)
    assert solved is not None
    assert solved.residual > 1e-10


def test_zero_equations_have_no_residual() -> None:
    solved = solve(np.eye(3), np.zeros((3, 2)), 0.1)
    assert solved is not None
    assert solved.residual == 0.0


@pytest.mark.parametrize("width", [1, 95, 96, 97, 200])
@pytest.mark.parametrize("outputs", [3, 700])
@pytest.mark.parametrize("order", ["C", "F"])
def test_panels_and_orders_change_nothing(
    width: int, outputs: int, order: Literal["C", "F"]
) -> None:
    rng = np.random.default_rng(width)
    rows = rng.standard_normal((2 * width, width))
    gram = rows.T @ rows
    moment, mean = (
        np.asarray(rng.standard_normal((width, outputs)), order=order) for _ in range(2)
    )
    before = moment.copy(), mean.copy()
    solution = solve_ridge(pack_symmetric(gram), moment, mean, 0.1)
    assert solution is not None
    shift = 0.1 * np.trace(gram) / width
    matrix = gram + shift * np.eye(width)
    expected = np.linalg.solve(matrix, moment + shift * mean)
    # Higham 2002, theorem 10.4, for both solves: 2 width (3 width + 1) u times the condition.
    error = 2 * width * (3 * width + 1) * 2.0**-53 * np.linalg.cond(matrix)
    atol = error * np.abs(expected).max()
    np.testing.assert_allclose(solution.weights, expected, rtol=0, atol=atol)
    # A single row may cancel in the product with signs, what it is divided by.
    assert width == 1 or solution.residual <= error
    assert (moment == before[0]).all()
    assert (mean == before[1]).all()
