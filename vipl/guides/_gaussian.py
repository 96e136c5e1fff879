"""Natural gradients for a Gaussian: the fixed point at which its moments match the log density's expected derivatives.

q = N(m, S),  S = A Aᵀ,  maximizes L = E_q[log p] + H[q]  where  E_q[∇ log p] = 0  and  S⁻¹ = E_q[-∇² log p].

With g and H estimates of the two expectations from draws z = m ± A e, in the frame of A, M = Aᵀ (-H) A = Q diag(λ) Qᵀ,
whose fixed point is λ = 1. No matrix is inverted, and nothing depends on the units of the coordinates: columns of a
regression in any scale give the same steps. Two phases:

    search     A ← A Q diag(λ^(-ρ/2)) Qᵀ,   m ← m + ρ A Q diag(1 / |λ|) Qᵀ Aᵀ g,   with λ between 1/25 and 25 in A, so
               that S grows where log p is convex: both are directions in which L grows. ρ by a line search on the bound
               that the draws estimate; the same draws while that grows, three sets of draws in all
    average    A ← A exp(-ρ (M - 1) / 2),   m ← m + ρ C g,   with C the inverse curvature at the end of the search, new
               draws in each step, and ρ = 1 / (t + 1), Robbins and Monro's rule. Both are linear in the estimates, so
               that the fixed point is that of the expectations. It ends when the standard errors of all m, in units of
               their sd, and of all log sd are below `tolerance`

For a diagonal A only the diagonal of M is used for A; the step in m uses all of it.

Exact for a Gaussian log density after two steps, whatever the draws (they come in pairs ± e).

Reference: Opper and Archambeau (2009), "The variational Gaussian approximation revisited", eqs. (8) and (9); Khan and
Rue (2023), "The Bayesian learning rule", section 3; Dauphin et al. (2014) for |λ|.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl import _jax
from vipl._types import Array, Bool, Float, Int, PRNGKeyArray

TOLERANCE = 0.02
"""Standard errors, in posterior sds, at which a fit ends."""
PAIRS = 4
"""Pairs of draws in each step."""
RATES = (1.0, 0.5, 0.2, 0.05, 0.01)
"""The steps that the line search compares."""
SEARCH_STEPS, LEAST_STEPS, STALLS = 200, 10, 3
MOST_SKIPPED = 100
"""How many more steps of the average may be skipped than taken before it ends."""
_LEAST, _MOST = 0.04, 25.0  # of λ: S changes by no more than that in one step of the search
_COLUMNS = 16
"""The fewest columns of a Hessian that are computed at a time."""
_MEMORY = 2**24
"""Numbers that an array in the Hessian may have, if that is more than for so few columns."""
_LEAST_SPLIT = 16
"""Coordinates from which a Hessian is computed in blocks."""
_CHANGE = 0.7  # of log A: A changes by no more than that in one step of the average


class Moments(NamedTuple):
    """A Gaussian that was found.

    Attributes:
      loc: f[n], m.
      factor: f[n, n], A; S = A Aᵀ.
      bounds: f[steps], the bound that the draws of each step estimate; NaN after the last.
      num_search: i[], steps of the search.
      num_average: i[], steps of the average.
      error: f[], the largest standard error, of m in units of sd and of log sd; infinite where the average took fewer
        than 10 steps.
      skipped: i[], steps of which an estimate was not finite, and that were not taken.
    """

    loc: Float[Array, " n"]
    factor: Float[Array, "n n"]
    bounds: Float[Array, " steps"]
    num_search: Int[Array, ""]
    num_average: Int[Array, ""]
    error: Float[Array, ""]
    skipped: Int[Array, ""]


class _State(NamedTuple):
    """What is carried from step to step.

    Attributes:
      loc: f[n], m.
      factor: f[n, n], A.
      bounds: f[steps], the bound that each step estimates.
      phase: i[], 0 for the step that only finds the scale of each coordinate, 1 for the search, 2 for the average.
      count: i[], steps taken in this phase, and in the ones before.
      num_search: i[], steps taken before the average.
      inverse: f[n, n], the inverse of the curvature at the last step of the search.
      stalls: i[], sets of draws whose bound the search did not make grow any more.
      moves: f[n], the mean over the last steps of the average of the squared steps of m, in units of its sd.
      logs: f[n], that of λ - 1, which is twice the error of log sd to first order.
      skipped: i[], steps not taken.
    """

    loc: Array
    factor: Array
    bounds: Array
    phase: Array
    count: Array
    num_search: Array
    inverse: Array
    stalls: Array
    moves: Array
    logs: Array
    skipped: Array

    def num_average(self) -> Int[Array, ""]:
        """Steps taken in the average."""
        return jnp.where(self.phase == 2, self.count - self.num_search, 0)

    def error(self) -> Float[Array, ""]:
        """The largest standard error of an average of so many independent steps; infinite for too few of them."""
        taken = self.num_average()
        error = jnp.sqrt(jnp.maximum(jnp.max(self.moves), jnp.max(self.logs) / 4) / jnp.maximum(taken, 1))
        return jnp.where(taken < LEAST_STEPS, jnp.inf, error)


def fit_gaussian(
    log_density: Callable[[Float[Array, " n"]], Float[Array, ""]],
    start: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    diagonal: bool = False,
    tolerance: float = TOLERANCE,
    max_steps: int = 2000,
) -> Moments:
    """Fits a Gaussian to a log density; see the module.

    Args:
      log_density: twice differentiable, finite at the start.
      start: where to begin.
      key: PRNG key.
      diagonal: whether S is diagonal.
      tolerance: standard errors below which the average ends.
      max_steps: the most steps of the average.
    """
    n, dtype = start.shape[0], start.dtype

    def goes_on(s: _State) -> Bool[Array, ""]:
        tried = s.num_average() + s.skipped
        usable = s.skipped < MOST_SKIPPED + s.num_average()
        return (s.phase < 2) | ((tried < max_steps) & usable & (s.error() > tolerance))

    def body(s: _State) -> _State:
        number = jnp.where(s.phase == 2, SEARCH_STEPS + s.count + s.skipped, s.stalls)
        noise = jnp.where(s.phase == 0, 0.0, pairs(jax.random.fold_in(key, number), n, dtype))
        gradient, hessian = _expected(log_density, s.loc, s.factor, noise)
        step = _step(s.factor, gradient, hessian, diagonal)
        return lax.switch(s.phase, (_scaled, _searched, _averaged), s, step, gradient, hessian, noise)

    def _scaled(s: _State, step: _Step, gradient: Array, hessian: Array, noise: Array) -> _State:
        """A = diag(|H_ii|^(-1/2)), at the start."""
        return s._replace(factor=_diagonal_frame(hessian), phase=jnp.int32(1))

    def _searched(s: _State, step: _Step, gradient: Array, hessian: Array, noise: Array) -> _State:
        here = _bound(log_density, s.loc, s.factor, noise)
        rates = jnp.asarray(RATES, dtype)
        locs, factors = jax.vmap(lambda rate: _moved(s.loc, s.factor, step, rate))(rates)
        bounds = lax.map(lambda x: _bound(log_density, x[0], x[1], noise), (locs, factors))
        best = jnp.argmax(jnp.where(jnp.isfinite(bounds), bounds, -jnp.inf))  # no step leads to where it is not
        better = bounds[best] > here
        loc, factor = jax.tree.map(functools.partial(jnp.where, better), (locs[best], factors[best]), (s.loc, s.factor))
        count = s.count + 1
        stalls = s.stalls + ~(bounds[best] - here > 1e-3 + 1e-6 * jnp.abs(here))
        ends = (stalls == STALLS) | (count == SEARCH_STEPS)
        return s._replace(
            loc=loc,
            factor=factor,
            bounds=s.bounds.at[s.count].set(here),
            phase=jnp.where(ends, 2, 1).astype(jnp.int32),
            count=count,
            num_search=count,
            inverse=step.inverse,
            stalls=stalls,
        )

    def _averaged(s: _State, step: _Step, gradient: Array, hessian: Array, noise: Array) -> _State:
        rate = 1.0 / (s.num_average() + 2)
        move = s.inverse @ gradient
        size = jnp.sqrt(jnp.abs(gradient @ move))
        move = move * jnp.minimum(1.0, jnp.sqrt(n) / jnp.maximum(size, 1.0))
        errors = step.values - 1
        change = jnp.exp(-jnp.clip(rate / 2 * errors, -_CHANGE, _CHANGE))
        loc, factor = s.loc + rate * move, s.factor @ ((step.vectors * change) @ step.vectors.T)
        bound = _bound(log_density, s.loc, s.factor, noise)
        sds = jnp.linalg.norm(s.factor, axis=1)
        logs = step.vectors**2 @ errors**2
        recent = 2.0 / (s.num_average() + 2)  # a mean over about the last half of the steps
        after = s._replace(
            loc=loc,
            factor=factor,
            bounds=s.bounds.at[s.count].set(bound),
            count=s.count + 1,
            moves=s.moves + recent * ((move / sds) ** 2 - s.moves),
            logs=s.logs + recent * (logs - s.logs),
        )
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in (loc, factor, bound)]))
        return jax.tree.map(functools.partial(jnp.where, finite), after, s._replace(skipped=s.skipped + 1))

    zero, sums = jnp.int32(0), jnp.zeros(n, dtype)
    bounds = jnp.full(SEARCH_STEPS + max_steps, jnp.nan, dtype)
    identity = jnp.eye(n, dtype=dtype)
    first = _State(start, identity, bounds, zero, zero, zero, identity, zero, sums, sums, zero)
    s = lax.while_loop(goes_on, body, first)
    return Moments(s.loc, s.factor, s.bounds, s.num_search, s.num_average(), s.error(), s.skipped)


def pairs(key: PRNGKeyArray, n: int, dtype: Any) -> Float[Array, "draws n"]:
    """Standard Gaussian draws e, -e."""
    e = jax.random.normal(key, (PAIRS, n), dtype)
    return jnp.concatenate([e, -e])


class Density(NamedTuple):
    """A log density of a vector, which is made of parts: of the coordinates of each latent choice.

    Attributes:
      of_parts: parts -> f[].
      sizes: of the parts.
    """

    of_parts: Callable[[Sequence[Array]], Array]
    sizes: tuple[int, ...]

    def __call__(self, u: Float[Array, " n"]) -> Float[Array, ""]:
        """The log density of the whole vector."""
        return self.of_parts(self.split(u))

    def split(self, u: Float[Array, " n"]) -> list[Array]:
        """The parts of a vector."""
        ends = np.cumsum(self.sizes)
        return [u[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    def derivatives(self, u: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        """Gradient and Hessian.

        Where one part is the larger half of the vector, that part's own block is computed with the others held: what
        only the others enter, such as the Cholesky factor of a covariance, is not differentiated along each of its
        coordinates. The blocks that mix the two come from the derivatives along the others.
        """
        n, largest = u.shape[0], int(np.argmax(self.sizes))
        start = sum(self.sizes[:largest])
        own = np.arange(start, start + self.sizes[largest])
        others = np.setdiff1d(np.arange(n), own)
        if not len(others) or 2 * len(own) < n or n < _LEAST_SPLIT:
            return _along(jax.grad(self), u, np.arange(n))
        parts = self.split(u)

        def of_own(x: Array) -> Array:
            return self.of_parts([x if i == largest else p for i, p in enumerate(parts)])

        gradient, mixed = _along(jax.grad(self), u, others)
        _, block = _along(jax.grad(of_own), parts[largest], np.arange(len(own)))
        hessian = jnp.zeros((n, n), u.dtype).at[:, others].set(mixed.T).at[others, :].set(mixed)
        return gradient, hessian.at[np.ix_(own, own)].set(block)


def _along(gradient: Callable[[Array], Array], u: Array, coordinates: np.ndarray) -> tuple[Array, Array]:
    """A gradient, and its derivatives along some coordinates, one row each.

    As many at a time as keep the arrays of the outermost equations below `_MEMORY` numbers.
    """
    eqns = _jax.parts(jax.make_jaxpr(gradient)(u))[3]
    largest = max((math.prod(v.aval.shape) for e in eqns for v in e.outvars), default=1)
    n = len(coordinates)
    turns = math.ceil(n / max(_COLUMNS, _MEMORY // largest))
    each = math.ceil(n / turns)
    tangents = jnp.zeros((turns * each, u.shape[0]), u.dtype).at[np.arange(n), coordinates].set(1)
    value, product = jax.linearize(gradient, u)
    rows = lax.map(jax.vmap(product), tangents.reshape(turns, each, -1))
    return value, rows.reshape(turns * each, -1)[:n]


def _expected(log_density: Callable, loc: Array, factor: Array, noise: Array) -> tuple[Array, Array]:
    """Means over the draws of the gradient and the Hessian."""
    density = log_density if isinstance(log_density, Density) else Density(lambda x: log_density(x[0]), loc.shape)
    gradients, hessians = lax.map(lambda e: density.derivatives(loc + factor @ e), noise)
    return jnp.mean(gradients, 0), jnp.mean(hessians, 0)


class _Step(NamedTuple):
    """What the draws of one step say.

    Attributes:
      move: f[n], the Newton step of m, in the frame of A.
      inverse: f[n, n], the inverse of the curvature that it takes.
      values: f[n], λ of what changes A.
      vectors: f[n, n], Q of it.
    """

    move: Array
    inverse: Array
    values: Array
    vectors: Array


def _step(factor: Array, gradient: Array, hessian: Array, diagonal: bool) -> _Step:
    scaled = -factor.T @ hessian @ factor
    values, vectors = jnp.linalg.eigh((scaled + scaled.T) / 2)
    sizes = jnp.maximum(jnp.abs(values), _LEAST)
    inverse = (factor @ vectors / sizes) @ (factor @ vectors).T
    move = vectors @ ((vectors.T @ (factor.T @ gradient)) / sizes)
    if diagonal:
        values, vectors = jnp.diagonal(scaled), jnp.eye(factor.shape[0], dtype=factor.dtype)
    return _Step(move, inverse, values, vectors)


def _moved(loc: Array, factor: Array, step: _Step, rate: Array | float) -> tuple[Array, Array]:
    logs = jnp.log(jnp.clip(step.values, _LEAST, _MOST))
    change = (step.vectors * jnp.exp(-rate / 2 * logs)) @ step.vectors.T
    return loc + rate * (factor @ step.move), factor @ change


def _bound(log_density: Callable, loc: Array, factor: Array, noise: Array) -> Float[Array, ""]:
    """The bound of N(m, A Aᵀ) that some draws estimate."""
    _, log_det = jnp.linalg.slogdet(factor)
    entropy = log_det + loc.shape[0] * (1 + jnp.log(2 * jnp.pi)) / 2
    return jnp.mean(jax.vmap(lambda e: log_density(loc + factor @ e))(noise)) + entropy


def lower_triangular(factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """L with positive diagonal and L Lᵀ = A Aᵀ, without squaring A."""
    r = jnp.linalg.qr(factor.T, mode="r")
    return (r * jnp.sign(jnp.where(jnp.diagonal(r) == 0, 1.0, jnp.diagonal(r)))[:, None]).T


class Mode(NamedTuple):
    """A mode that was found.

    Attributes:
      loc: f[n], where.
      factor: f[n, n], A with A Aᵀ the inverse of the curvature there.
      curvature: f[n], the eigenvalues of the curvature in the frame of the last step; positive at a mode.
      decrement: f[], the last step's size in units of A; zero at a mode.
    """

    loc: Array
    factor: Array
    curvature: Array
    decrement: Array


def find_mode(log_density: Callable[[Float[Array, " n"]], Float[Array, ""]], start: Float[Array, " n"]) -> Mode:
    """Newton's method with a line search, and |λ| for the eigenvalues of the curvature, from a start.

    Args:
      log_density: twice differentiable, finite at the start.
      start: where to begin.
    """
    n, dtype = start.shape[0], start.dtype
    at_mode = jnp.zeros((1, n), dtype)

    def look(loc: Array, factor: Array) -> tuple[Array, Array, Array, Array]:
        gradient, hessian = _expected(log_density, loc, factor, at_mode)
        values, vectors = jnp.linalg.eigh(-(factor.T @ hessian @ factor))
        sizes = jnp.maximum(jnp.abs(values), jnp.finfo(dtype).eps)
        move = vectors @ ((vectors.T @ (factor.T @ gradient)) / sizes)
        decrement = jnp.linalg.norm(jnp.sqrt(sizes) * (vectors.T @ move))
        return factor @ move, (factor @ vectors) / jnp.sqrt(sizes), values, decrement

    def goes_on(s: tuple[Array, Array, Array, Array]) -> Bool[Array, ""]:
        return (s[2] < SEARCH_STEPS) & s[3]

    def body(s: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        loc, factor, count, _ = s
        move, factor, _, decrement = look(loc, factor)
        rates = jnp.asarray((*RATES, 1e-3, 1e-4, 0.0), dtype)
        values = jax.vmap(lambda rate: log_density(loc + rate * move))(rates)
        best = jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
        return loc + rates[best] * move, factor, count + 1, (rates[best] > 0) & (decrement > 1e-3)

    scale = _expected(log_density, start, jnp.eye(n, dtype=dtype), at_mode)[1]
    first = (start, _diagonal_frame(scale), jnp.int32(0), jnp.asarray(True))
    loc, factor, _, _ = lax.while_loop(goes_on, body, first)
    for _ in range(2):
        move, factor, _, _ = look(loc, factor)
        after = loc + move
        loc = jnp.where(log_density(after) >= log_density(loc) - 1e-3, after, loc)
    _, factor, values, decrement = look(loc, factor)
    return Mode(loc, factor, values, decrement)


def _diagonal_frame(hessian: Array) -> Array:
    """diag(|H_ii|^(-1/2))."""
    curvature = jnp.abs(jnp.diagonal(hessian))
    usable = jnp.isfinite(curvature) & (curvature > 0)
    return jnp.diag(jnp.where(usable, 1 / jnp.sqrt(jnp.where(usable, curvature, 1.0)), 1.0))
