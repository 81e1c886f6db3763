"""Least squares with a ridge towards a mean, from sums: factorised once, checked, never inverted.

    W = (S + rho t I)^-1 (M + rho t D) = D + (S + rho t I)^-1 (M - S D),     t = mean(diag S)

The first form needs no product with S, which would cost as much as the solve. By Cholesky after
Jacobi scaling (van der Sluis 1969: the best diagonal but for a factor of the width), in float64:
its residual is that of rounding, whatever the condition number (Higham 2002, theorem 10.4), so
that a step of iterative refinement in the same precision would have nothing to correct.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, blas, cho_factor, lapack

from blindmerge.statistic import Array, packed_diagonal, unpack_symmetric

__all__ = ["RIDGES", "Solution", "solve_ridge", "two_fold"]

RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""What `two_fold` chooses from."""

_FIRST_RAISED_RIDGE = 1e-12  # where to go from a ridge of zero
_LAST_RAISED_RIDGE = 1e3  # beyond it the result is the average
_WORST_ERROR = 1e-3  # of a solution that is accepted, relative: three digits are right
_TRIANGLE = 64  # columns that are substituted at once; the rest of the work is whole products
_PANEL = 64  # columns that are scaled at once, in the cache
_CACHED = 2**16  # numbers in the cache


@dataclass(frozen=True, slots=True)
class Solution:
    """What solves the equations, and how well.

    weights: [width, outputs].   ridge: as used, after raises.
    condition_number: of the scaled matrix, in the 1-norm, as LAPACK estimates it.
    residual: |A W v - B v| / |B v| in the 2-norm, A W = B the equations, with the ridge, and v
        a vector of signs that does not depend on them (Freivalds 1979).
    """

    weights: Array
    ridge: float
    condition_number: float
    residual: float


def solve_ridge(gram: Array, moment: Array, mean: Array, ridge: float) -> Solution | None:
    """The W above, with the ridge raised tenfold until three of its digits are right.

    gram: packed triangle of S, meant to be positive semidefinite: rounding, noise or a peer may
        have spoilt that.   moment, mean: M and D [width, outputs].   None of them is changed.
    Returns None if nothing succeeds.
    """
    diagonal = packed_diagonal(gram, len(moment))
    mean_diagonal = float(np.mean(diagonal))
    if mean_diagonal <= 0:
        return None
    while True:
        shift = ridge * mean_diagonal
        factor = _factorised(gram, diagonal + shift)
        if factor is not None:
            weights, residual = _solved(factor, gram, moment, mean, shift)
            return Solution(weights, ridge, factor.condition_number, residual)
        ridge = max(10.0 * ridge, _FIRST_RAISED_RIDGE)
        if ridge > _LAST_RAISED_RIDGE:
            return None


def two_fold(whole: tuple[Array, Array], half: tuple[Array, Array], mean: Array) -> float:
    """The ridge that predicts one half of the rows best from the other, and the other way round.

    whole, half: S, a packed triangle, and M, over all rows and over the first half of them; both
    with the owners' factors of the whole.   mean: D [width, outputs].
    Of |X W - Y|^2 over the rows of a half all but a constant follows from its S and M:
    tr(W^T S W) - 2 tr(W^T M). No single row is needed. Returns one of RIDGES, the larger one
    of two that are as good.
    """
    rest = (whole[0] - half[0], whole[1] - half[1])
    losses = {
        ridge: sum(
            _unexplained(solve_ridge(*seen, mean, ridge), mean, *unseen)
            for seen, unseen in ((half, rest), (rest, half))
        )
        for ridge in RIDGES
    }
    return min(reversed(RIDGES), key=losses.__getitem__)


def _unexplained(solution: Solution | None, mean: Array, gram: Array, moment: Array) -> float:
    """tr(W^T S W) - 2 tr(W^T M), of the mean if nothing was solved."""
    weights = mean if solution is None else solution.weights
    product = unpack_symmetric(gram, len(weights)) @ weights
    return float(np.sum(weights * (product - 2 * moment)))


@dataclass(frozen=True, slots=True)
class _Factor:
    """upper: U with U^T U = J A J, where J = diag(jacobi) makes the diagonal one."""

    upper: Array
    jacobi: Array
    condition_number: float


def _factorised(gram: Array, diagonal: Array) -> _Factor | None:
    """The matrix with this diagonal; None if a solution could not be trusted."""
    if not (diagonal > 0).all():
        return None
    jacobi = 1.0 / np.sqrt(diagonal)
    with np.errstate(over="ignore"):
        scaled, norm = _scaled(gram, jacobi)
    if not np.isfinite(norm):
        return None
    try:
        upper, _ = cho_factor(scaled, lower=False, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    reciprocal, _ = lapack.dpocon(upper, norm, uplo="U")
    # Higham 2002, section 10.1: the relative error of the solution is about
    # width * eps * condition number.
    if len(jacobi) * np.finfo(np.float64).eps > _WORST_ERROR * reciprocal:
        return None
    return _Factor(upper, jacobi, float(1.0 / reciprocal))


def _scaled(gram: Array, jacobi: Array) -> tuple[Array, float]:
    """The upper triangle of J S J with ones as diagonal, and the 1-norm of the whole matrix."""
    matrix, _ = lapack.dtpttr(len(jacobi), gram, uplo="U")
    sums = np.zeros(len(jacobi))
    for start in range(0, len(jacobi), _PANEL):
        stop = min(start + _PANEL, len(jacobi))
        panel = matrix[:stop, start:stop]
        panel *= jacobi[:stop, None]
        panel *= jacobi[start:stop]
        corner = panel[start:]
        corner[...] = np.triu(corner, 1)
        sizes = np.abs(panel)
        sums[:stop] += sizes.sum(axis=1)
        sums[start:stop] += sizes.sum(axis=0)
        np.fill_diagonal(corner, 1.0)
    return matrix, float(sums.max() + 1.0)


def _solved(
    factor: _Factor, gram: Array, moment: Array, mean: Array, shift: float
) -> tuple[Array, float]:
    """W and its residual."""
    target = np.empty(moment.shape)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), moment.shape[1])
    expected, summed = np.empty(len(moment)), np.empty(len(moment))
    for some in _few_rows(target):
        np.multiply(shift, mean[some], out=target[some])
        target[some] += moment[some]
        expected[some] = blas.dgemv(1.0, target[some].T, signs, trans=1)
        target[some] *= factor.jacobi[some, None]
    weights = _substituted(factor.upper, target)
    for some in _few_rows(weights):
        weights[some] *= factor.jacobi[some, None]
        summed[some] = blas.dgemv(1.0, weights[some].T, signs, trans=1)
    found = blas.dspmv(len(summed), 1.0, gram, summed) + shift * summed
    size = float(np.linalg.norm(expected))
    return weights, float(np.linalg.norm(found - expected)) / size if size > 0 else 0.0


def _few_rows(matrix: Array) -> Iterator[slice]:
    """Rows of a matrix, as many at a time as the cache holds."""
    step = max(1, _CACHED // matrix.shape[1])
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def _substituted(upper: Array, target: Array) -> Array:
    """(U^T U)^-1 target, in place of `target`, whose rows have to lie one after another.

    To BLAS, which has columns one after another, that is its transpose: X^T U^T U = target^T.
    `cho_solve` would copy it into another order and back.
    """
    _divide(target.T, upper, transposed=False)
    _divide(target.T, upper, transposed=True)
    return target


def _divide(x: Array, upper: Array, *, transposed: bool) -> None:
    """x U^-1, or x U^-T if `transposed`, in place of x.

    By halves, since a product of matrices is faster than a substitution of the same size.
    """
    if len(upper) <= _TRIANGLE:
        blas.dtrsm(1.0, upper, x, side=1, trans_a=transposed, overwrite_b=1)
        return
    middle = len(upper) // 2
    first, last = slice(None, middle), slice(middle, None)
    done, rest = (last, first) if transposed else (first, last)
    _divide(x[:, done], upper[done, done], transposed=transposed)
    corner = upper[first, last]
    blas.dgemm(-1.0, x[:, done], corner, trans_b=transposed, beta=1.0, c=x[:, rest], overwrite_c=1)
    _divide(x[:, rest], upper[rest, rest], transposed=transposed)
