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

A kink of log p, as of |x|, has a curvature that no Hessian at a point sees; and where A has grown far beyond log p, few
points see any. The bound sees it: by Stein's identity E[e_i (Aᵀ ∇ log p)_i] = (Aᵀ E[∇² log p] A)_ii with kinks and all,
beside which the mean of the Hessians is looked at, also in the sum over i (`Progress.misses`). Where they differ, the
fit is made again with the curvature of secants, which in the frame of A has the columns

    E[(Aᵀ ∇ log p(m + A e⁺) - Aᵀ ∇ log p(m + A e⁻)) / (2 s)],   e⁺ and e⁻ with ± s as i-th coordinate,  s ~ chi(3)

That is Stein's identity, too, since ∫ ∇f(s) s φ(s) ds is half the mean of (∇f(s) - ∇f(-s)) / s over s of density
∝ s² φ(s): unbiased for every log density that is continuous, and without noise for a Gaussian one. A jump of log p, as
at the end of uniform noise, is in no gradient, and neither sees it.

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
from vipl._types import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray
from vipl.guides._natural import NO_HESSIAN, PAIRS, RATES, SEARCH_STEPS, TOLERANCE, Progress, hessian_products

_LEAST, _MOST = 0.04, 25.0  # of λ: S changes by no more than that in one step of the search
_COLUMNS = 16
"""The fewest columns of a Hessian that are computed at a time."""
_MEMORY = 2**24
"""Numbers that an array in the Hessian may have, if that is more than for so few columns."""
_LEAST_SPLIT = 16
"""Coordinates from which a Hessian is computed in blocks."""
_CHANGE = 0.7  # of log A: A changes by no more than that in one step of the average


LogDensity = Callable[[Float[Array, " n"]], Float[Array, ""]]


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
      misses: bool[], whether Hessians at points miss a part of the curvature.
    """

    loc: Float[Array, " n"]
    factor: Float[Array, "n n"]
    bounds: Float[Array, " steps"]
    num_search: Int[Array, ""]
    num_average: Int[Array, ""]
    error: Float[Array, ""]
    skipped: Int[Array, ""]
    misses: Bool[Array, ""]


class _State(NamedTuple):
    """What is carried from step to step.

    Attributes:
      loc: f[n], m.
      factor: f[n, n], A.
      inverse: f[n, n], the inverse of the curvature at the last step of the search.
      progress: how far the fit is.
    """

    loc: Array
    factor: Array
    inverse: Array
    progress: Progress


class Expected(NamedTuple):
    """Means over the draws.

    Attributes:
      gradient: f[n], of log p.
      curvature: f[n, n], Aᵀ E[-∇² log p] A.
      missed: f[n], of the diagonal of that, what the gradients say more.
    """

    gradient: Array
    curvature: Array
    missed: Array


Look = Callable[[Callable, Array, Array, Array, PRNGKeyArray], Expected]
"""(log density, m, A, e, key) -> what the draws m + A e say."""


def fit_gaussian(log_density: LogDensity, start: Float[Array, " n"], key: PRNGKeyArray, **options: Any) -> Moments:
    """Fits a Gaussian to a log density, by secants where Hessians miss a part of the curvature; see `fit_by`."""
    return refit(fit_by(by_hessians, log_density, start, key, **options), log_density, start, key, **options)


def refit(
    found: Moments, log_density: LogDensity, start: Float[Array, " n"], key: PRNGKeyArray, **options: Any
) -> Moments:
    """What Hessians have found; where these miss a part of the curvature, the Gaussian by secants. See `fit_by`."""
    again = fit_by(by_secants, log_density, start, key, wanted=found.misses, **options)
    return jax.tree.map(functools.partial(jnp.where, found.misses), again._replace(misses=True), found)


def fit_by(
    look: Look,
    log_density: LogDensity,
    start: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    wanted: Bool[ArrayLike, ""] = True,
    diagonal: bool = False,
    tolerance: float = TOLERANCE,
    max_steps: int = 2000,
) -> Moments:
    """Fits a Gaussian to a log density by Hessians alone, or by secants alone; see the module.

    Args:
      look: `by_hessians` or `by_secants`.
      log_density: differentiable almost everywhere, finite at the start.
      start: where to begin.
      key: PRNG key.
      wanted: whether to take any step.
      diagonal: whether S is diagonal.
      tolerance: standard errors below which the average ends.
      max_steps: the most steps of the average.
    """
    n, dtype = start.shape[0], start.dtype

    def goes_on(s: _State) -> Bool[Array, ""]:
        return jnp.asarray(wanted) & s.progress.goes_on(tolerance, max_steps)

    def body(s: _State) -> _State:
        noise, own = s.progress.noise(key, n, dtype)
        seen = look(log_density, s.loc, s.factor, noise, own)
        step = _step(s.factor, seen, diagonal)
        return lax.switch(s.progress.phase, (_scaled, _searched, _averaged), s, step, seen, noise)

    def _scaled(s: _State, step: _Step, seen: Expected, noise: Array) -> _State:
        """A = diag(|H_ii|^(-1/2)), at the start."""
        return s._replace(factor=_diagonal_frame(seen.curvature), progress=s.progress.scaled())

    def _searched(s: _State, step: _Step, seen: Expected, noise: Array) -> _State:
        here = _bound(log_density, s.loc, s.factor, noise)
        rates = jnp.asarray(RATES, dtype)
        locs, factors = jax.vmap(lambda rate: _moved(s.loc, s.factor, step, rate))(rates)
        bounds = lax.map(lambda x: _bound(log_density, x[0], x[1], noise), (locs, factors))
        best = jnp.argmax(jnp.where(jnp.isfinite(bounds), bounds, -jnp.inf))  # no step leads to where it is not
        better = bounds[best] > here
        loc, factor = jax.tree.map(functools.partial(jnp.where, better), (locs[best], factors[best]), (s.loc, s.factor))
        return _State(loc, factor, step.inverse, s.progress.searched(here, bounds[best]))

    def _averaged(s: _State, step: _Step, seen: Expected, noise: Array) -> _State:
        rate = s.progress.rate()
        move = s.inverse @ seen.gradient
        size = jnp.sqrt(jnp.abs(seen.gradient @ move))
        move = move * jnp.minimum(1.0, jnp.sqrt(n) / jnp.maximum(size, 1.0))
        errors = step.values - 1
        change = jnp.exp(-jnp.clip(rate / 2 * errors, -_CHANGE, _CHANGE))
        loc, factor = s.loc + rate * move, s.factor @ ((step.vectors * change[None]) @ step.vectors.T)
        bound = _bound(log_density, s.loc, s.factor, noise)
        sds = jnp.linalg.norm(s.factor, axis=1)
        logs = step.vectors**2 @ (errors / 2) ** 2  # to first order
        progress = s.progress.averaged(bound, (move / sds) ** 2, logs, seen.missed)
        after = _State(loc, factor, s.inverse, progress)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in (loc, factor, bound, seen.missed)]))
        before = s._replace(progress=s.progress.left_out())
        return jax.tree.map(functools.partial(jnp.where, finite), after, before)

    identity = jnp.eye(n, dtype=dtype)
    s = lax.while_loop(goes_on, body, _State(start, identity, identity, Progress.begin(n, dtype, max_steps)))
    p = s.progress
    return Moments(s.loc, s.factor, p.bounds, p.num_search, p.num_average(), p.error(), p.skipped, p.misses(tolerance))


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
    in_turns = tangents.reshape(turns, each, -1)
    value, rows = hessian_products(gradient, u, lambda product: lax.map(jax.vmap(product), in_turns))
    return value, rows.reshape(turns * each, -1)[:n]


def by_hessians(log_density: Callable, loc: Array, factor: Array, noise: Array, key: PRNGKeyArray) -> Expected:
    """Curvature by Hessians at the draws; by secants where there are none, as of a callback with a gradient."""
    try:
        gradients, hessians = _derivatives(log_density, loc, factor, noise)
    except NO_HESSIAN:
        return by_secants(log_density, loc, factor, noise, key)
    curvature = -factor.T @ jnp.mean(hessians, 0) @ factor
    # Beside the gradients of a pair of draws stand the Hessians of the others, which are independent of it.
    others = (jnp.sum(hessians, 0) - hessians - jnp.roll(hessians, PAIRS, 0)) / (2 * PAIRS - 2)
    rest = gradients - jnp.einsum("dij,dj->di", others, noise @ factor.T)
    return Expected(jnp.mean(gradients, 0), curvature, -jnp.mean(noise * (rest @ factor), 0))


def _derivatives(log_density: Callable, loc: Array, factor: Array, noise: Array) -> tuple[Array, Array]:
    """Gradient and Hessian at each draw."""
    density = log_density if isinstance(log_density, Density) else Density(lambda x: log_density(x[0]), loc.shape)
    return lax.map(lambda e: density.derivatives(loc + factor @ e), noise)


def by_secants(log_density: Callable, loc: Array, factor: Array, noise: Array, key: PRNGKeyArray) -> Expected:
    """Curvature by secants through the draws, one along each axis of the frame."""
    n = loc.shape[0]

    def slope(e: Array) -> Array:
        return jax.grad(log_density)(loc + factor @ e)

    def at(x: tuple[Array, PRNGKeyArray]) -> tuple[Array, Array]:
        e, key = x
        widths = jnp.sqrt(jax.random.chisquare(key, 3, (n,), loc.dtype))

        def column(i: Array) -> Array:
            up, down = slope(e.at[i].set(widths[i])), slope(e.at[i].set(-widths[i]))
            return (up - down) @ factor / (-2 * widths[i])

        return slope(e), lax.map(column, jnp.arange(n), batch_size=min(n, _COLUMNS))

    slopes, curvatures = lax.map(at, (noise, jax.random.split(key, noise.shape[0])))
    return Expected(jnp.mean(slopes, 0), jnp.mean(curvatures, 0), jnp.zeros_like(loc))


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


def _step(factor: Array, seen: Expected, diagonal: bool) -> _Step:
    values, vectors = jnp.linalg.eigh((seen.curvature + seen.curvature.T) / 2)
    sizes = jnp.maximum(jnp.abs(values), _LEAST)
    inverse = (factor @ (vectors / sizes[None])) @ (factor @ vectors).T
    move = vectors @ ((vectors.T @ (factor.T @ seen.gradient)) / sizes)
    if diagonal:
        values, vectors = jnp.diagonal(seen.curvature), jnp.eye(factor.shape[0], dtype=factor.dtype)
    return _Step(move, inverse, values, vectors)


def _moved(loc: Array, factor: Array, step: _Step, rate: Array | float) -> tuple[Array, Array]:
    logs = jnp.log(jnp.clip(step.values, _LEAST, _MOST))
    change = (step.vectors * jnp.exp(-rate / 2 * logs)[None]) @ step.vectors.T
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
        (gradient,), (hessian,) = _derivatives(log_density, loc, factor, at_mode)
        values, vectors = jnp.linalg.eigh(-(factor.T @ hessian @ factor))
        sizes = jnp.maximum(jnp.abs(values), jnp.finfo(dtype).eps)
        move = vectors @ ((vectors.T @ (factor.T @ gradient)) / sizes)
        decrement = jnp.linalg.norm(jnp.sqrt(sizes) * (vectors.T @ move))
        return factor @ move, (factor @ vectors) / jnp.sqrt(sizes)[None], values, decrement

    def goes_on(s: tuple[Array, Array, Array, Array]) -> Bool[Array, ""]:
        return (s[2] < SEARCH_STEPS) & s[3]

    def body(s: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        loc, factor, count, _ = s
        move, factor, _, decrement = look(loc, factor)
        rates = jnp.asarray((*RATES, 1e-3, 1e-4, 0.0), dtype)
        values = jax.vmap(lambda rate: log_density(loc + rate * move))(rates)
        best = jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
        return loc + rates[best] * move, factor, count + 1, (rates[best] > 0) & (decrement > 1e-3)

    (scale,) = _derivatives(log_density, start, jnp.eye(n, dtype=dtype), at_mode)[1]
    first = (start, _diagonal_frame(scale), jnp.int32(0), jnp.asarray(True))
    loc, factor, _, _ = lax.while_loop(goes_on, body, first)
    for _ in range(2):
        move, factor, _, _ = look(loc, factor)
        after = loc + move
        loc = jnp.where(log_density(after) >= log_density(loc) - 1e-3, after, loc)
    _, factor, values, decrement = look(loc, factor)
    return Mode(loc, factor, values, decrement)


def _diagonal_frame(curvature: Array) -> Array:
    """diag(|H_ii|^(-1/2)), of a curvature in the frame of the coordinates."""
    curvature = jnp.abs(jnp.diagonal(curvature))
    usable = jnp.isfinite(curvature) & (curvature > 0)
    return jnp.diag(jnp.where(usable, 1 / jnp.sqrt(jnp.where(usable, curvature, 1.0)), 1.0))
