"""Natural gradients for a Gaussian: the fixed point at which its moments match the log density's expected derivatives.

q = N(m, S),  S = A Aᵀ,  maximizes L = E_q[log p] + H[q]  where  E_q[∇ log p] = 0  and  S⁻¹ = E_q[-∇² log p].

With g and H estimates of the two expectations from draws z = m ± A e, in the frame of A:

    M = Aᵀ (-H) A = Q diag(λ) Qᵀ,      A ← A Q diag(λ^(-ρ/2)) Qᵀ,      m ← m + ρ A Q diag(1 / |λ|) Qᵀ Aᵀ g.

λ = 1 is the fixed point, so that log λ is the error of S. In A, λ counts as between 1/25 and 25: S grows where log p is
convex, and changes by no more than that in a step. Both are directions in which L grows. No matrix is inverted, and
nothing depends on the units of the coordinates: columns of a regression in any scale give the same steps. Two phases:

    search     ρ by a line search on the bound that some draws estimate; the same draws while that grows, three sets of
               draws in all
    average    new draws in each step, ρ = 1 / (t + 1): Robbins and Monro's rule, whose iterate is an average over all
               steps. It ends when the standard errors of m, in units of A, and of log sd are below `tolerance`.

For a diagonal A only the diagonal of M is used for A; the step in m uses all of it.

Exact for a Gaussian log density after two steps, whatever the draws (they come in pairs ± e).

Reference: Opper and Archambeau (2009), "The variational Gaussian approximation revisited", eqs. (8) and (9); Khan and
Rue (2023), "The Bayesian learning rule", section 3; Dauphin et al. (2014) for |λ|.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl._types import Array, Bool, Float, Int, PRNGKeyArray

PAIRS = 4
"""Pairs of draws in each step."""
RATES = (1.0, 0.5, 0.2, 0.05, 0.01)
"""The steps that the line search compares."""
SEARCH_STEPS, LEAST_STEPS, STALLS = 200, 10, 3
_LEAST, _MOST = 0.04, 25.0  # of λ: S changes by no more than that in one step


class Moments(NamedTuple):
    """A Gaussian that was found.

    Attributes:
      loc: f[n], m.
      factor: f[n, n], A; S = A Aᵀ.
      bounds: f[steps], the bound that the draws of each step estimate; NaN after the last.
      num_search: i[], steps of the search.
      num_average: i[], steps of the average.
      error: f[], the largest standard error, of m in units of sd and of log sd.
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
      stalls: i[], sets of draws whose bound the search did not make grow any more.
      moves: f[n], the mean over the last steps of the average of the squared steps of m in the frame.
      logs: f[n], that of log λ.
      skipped: i[], steps not taken.
    """

    loc: Array
    factor: Array
    bounds: Array
    phase: Array
    count: Array
    num_search: Array
    stalls: Array
    moves: Array
    logs: Array
    skipped: Array

    def num_average(self) -> Int[Array, ""]:
        """Steps taken in the average."""
        return jnp.where(self.phase == 2, self.count - self.num_search, 0)

    def error(self) -> Float[Array, ""]:
        """The largest standard error of an average of so many independent steps."""
        taken = jnp.maximum(self.num_average(), 1)
        return jnp.sqrt(jnp.maximum(jnp.max(self.moves), jnp.max(self.logs) / 4) / taken)


def fit_gaussian(
    log_density: Callable[[Float[Array, " n"]], Float[Array, ""]],
    start: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    diagonal: bool = False,
    tolerance: float = 0.02,
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
        return (s.phase < 2) | ((tried < max_steps) & ((tried < LEAST_STEPS) | (s.error() > tolerance)))

    def body(s: _State) -> _State:
        number = jnp.where(s.phase == 2, SEARCH_STEPS + s.count + s.skipped, s.stalls)
        noise = jnp.where(s.phase == 0, 0.0, _pairs(jax.random.fold_in(key, number), n, dtype))
        gradient, hessian = _expected(log_density, s.loc, s.factor, noise)
        step = _step(s.factor, gradient, hessian, diagonal)
        return lax.switch(s.phase, (_scaled, _searched, _averaged), s, step, hessian, noise)

    def _scaled(s: _State, step: _Step, hessian: Array, noise: Array) -> _State:
        """A = diag(|H_ii|^(-1/2)), at the start."""
        curvature = jnp.abs(jnp.diagonal(hessian))
        usable = jnp.isfinite(curvature) & (curvature > 0)
        factor = jnp.diag(jnp.where(usable, 1 / jnp.sqrt(jnp.where(usable, curvature, 1.0)), 1.0))
        return s._replace(factor=factor, phase=jnp.int32(1))

    def _searched(s: _State, step: _Step, hessian: Array, noise: Array) -> _State:
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
            stalls=stalls,
        )

    def _averaged(s: _State, step: _Step, hessian: Array, noise: Array) -> _State:
        size = jnp.linalg.norm(step.move)
        step = step._replace(move=step.move * jnp.minimum(1.0, jnp.sqrt(n) / jnp.maximum(size, 1.0)))
        loc, factor = _moved(s.loc, s.factor, step, 1.0 / (s.num_average() + 2))
        bound = _bound(log_density, s.loc, s.factor, noise)
        logs = step.vectors**2 @ step.log_eigenvalues**2
        recent = 2.0 / (s.num_average() + 2)  # a mean over about the last half of the steps
        after = s._replace(
            loc=loc,
            factor=factor,
            bounds=s.bounds.at[s.count].set(bound),
            count=s.count + 1,
            moves=s.moves + recent * (step.move**2 - s.moves),
            logs=s.logs + recent * (logs - s.logs),
        )
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in (loc, factor, bound)]))
        return jax.tree.map(functools.partial(jnp.where, finite), after, s._replace(skipped=s.skipped + 1))

    zero, sums = jnp.int32(0), jnp.zeros(n, dtype)
    bounds = jnp.full(SEARCH_STEPS + max_steps, jnp.nan, dtype)
    first = _State(start, jnp.eye(n, dtype=dtype), bounds, zero, zero, zero, zero, sums, sums, zero)
    s = lax.while_loop(goes_on, body, first)
    return Moments(s.loc, s.factor, s.bounds, s.num_search, s.num_average(), s.error(), s.skipped)


def _pairs(key: PRNGKeyArray, n: int, dtype: Any) -> Float[Array, "draws n"]:
    """Standard Gaussian draws e, -e."""
    e = jax.random.normal(key, (PAIRS, n), dtype)
    return jnp.concatenate([e, -e])


def _expected(log_density: Callable, loc: Array, factor: Array, noise: Array) -> tuple[Array, Array]:
    """Means over the draws of the gradient and the Hessian; a few columns at a time, which bounds the memory."""
    gradient = jax.grad(log_density)
    n = loc.shape[0]

    def at(e: Array) -> tuple[Array, Array]:
        u = loc + factor @ e
        column = lambda v: jax.jvp(gradient, (u,), (v,))  # noqa: E731
        gradients, columns = lax.map(column, jnp.eye(n, dtype=loc.dtype), batch_size=min(16, n))
        return gradients[0], columns

    gradients, hessians = lax.map(at, noise)
    return jnp.mean(gradients, 0), jnp.mean(hessians, 0)


class _Step(NamedTuple):
    """One step in the frame of A.

    Attributes:
      move: f[n], the Newton step of m.
      log_eigenvalues: f[n], log λ of what changes A.
      vectors: f[n, n], Q of it.
    """

    move: Array
    log_eigenvalues: Array
    vectors: Array


def _step(factor: Array, gradient: Array, hessian: Array, diagonal: bool) -> _Step:
    scaled = -factor.T @ hessian @ factor
    values, vectors = jnp.linalg.eigh((scaled + scaled.T) / 2)
    move = vectors @ ((vectors.T @ (factor.T @ gradient)) / jnp.maximum(jnp.abs(values), _LEAST))
    if diagonal:
        values, vectors = jnp.diagonal(scaled), jnp.eye(factor.shape[0], dtype=factor.dtype)
    return _Step(move, jnp.log(jnp.clip(values, _LEAST, _MOST)), vectors)


def _moved(loc: Array, factor: Array, step: _Step, rate: Array | float) -> tuple[Array, Array]:
    change = (step.vectors * jnp.exp(-rate / 2 * step.log_eigenvalues)) @ step.vectors.T
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
