"""A Gaussian with the loops of the model as its structure, and natural gradients for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl._types import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from vipl.gen import Program
from vipl.gen._choices import Address
from vipl.guides._blocks import (
    Block,
    BlockGaussian,
    blocks_of,
    curvature,
    factorize,
    identity,
    layout_of,
    log_det,
    probes,
    quadratic,
    to_tree,
    to_vector,
    unit_precision,
)
from vipl.guides._joint import JointGuide
from vipl.guides._natural import NO_HESSIAN, PAIRS, RATES, TOLERANCE, Progress, hessian_products

_MOST_NUMBERS = 2**20
"""How many numbers of products with the Hessian are computed together."""


class Structured(JointGuide):
    """A Gaussian that is conditioned along the loops of the model, in unconstrained coordinates.

    u = loc + d,   d_b = F_b d_around(b) + A_b d_before(b) + L_b e_b,   e ~ N(0, I).

    A block b holds the coordinates of one pass of a loop; one block holds those in no loop. It is conditioned on the
    blocks around it, and in a `scan` on the pass before: along a `scan` the Gaussian is a Markov chain. Inside a block
    there is every correlation. Loops of a `vmap` nest; all that is inside one pass of a `scan` is one block. Loops of
    the same kind and length in the same place share their blocks, and so do a `scan` and a `vmap` without loops inside.
    Exact for a Gaussian posterior in which different passes are connected by the blocks around and, in a `scan`, from
    step to step: state-space models and hierarchies in their centred form. Correlations that go another way, as between
    two crossed groups, are left out. L does not change with the values around it, so that the spread of a scale that
    only the states tell of, as that of a random walk, is understated, as in `FullRank`.

    Parameters, for every block: `log_diag` [..., d] and `lower` [..., d, d], of L; `context` [..., d, c], F; in a
    `scan` `previous` [..., d, d], A; `loops`, the same of the loops inside by name, "scan of 50" or "vmap of 8", with
    an axis of passes; and `loc` f[n], of all.
    Cost: d (d + c) numbers a pass, and O(d (d + c)) operations a draw and a density: linear in the passes. Use it for
    time series and hierarchies with more coordinates than `FullRank` can take; write a large vector of effects as a
    site in a `vmap`, as a plain array is a part of one block.

    Reference: Tan and Nott (2018), "Gaussian variational approximation with sparse precision matrices", section 3;
    Hoffman and Blei (2015), "Structured stochastic variational inference".
    """

    def __init__(self, model: Program, data: Mapping[str, Any], *, addresses: Any = None):
        """See `Guide`."""
        super().__init__(model, data, addresses=addresses)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        return {"addresses": self._addresses}

    def _check(self) -> None:
        super()._check()
        self._layout = layout_of(self.latents.real)

    def family(self, params: PyTree) -> BlockGaussian:
        """The Gaussian of some parameters."""
        return BlockGaussian(params["loc"], {k: v for k, v in params.items() if k != "loc"}, self._layout)

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        loc = self.center(u)
        return {"loc": loc} | identity(blocks_of(self._layout), scale.astype(loc.dtype))

    def has_structure(self, u: Float[Array, " n"], key: PRNGKeyArray) -> Bool[Array, ""]:
        """Whether the Hessian of the model's log density near u is zero outside the guide's structure.

        A product with the Hessian is compared with one of what is read of it. Where there is none, nothing is.
        """
        try:
            return self._has_structure(u, key)
        except NO_HESSIAN:
            return jnp.asarray(False)

    def _has_structure(self, u: Float[Array, " n"], key: PRNGKeyArray) -> Bool[Array, ""]:
        keys = jax.random.split(key, 3)
        near = u + 0.5 * jax.random.normal(keys[0], u.shape, u.dtype)
        none, block = jnp.zeros((1, *u.shape), u.dtype), blocks_of(self._layout)
        _, each = _derivatives(self._log_density, self._layout, near, none, keys[1])
        precision = jax.tree.map(lambda x: x[0], each)
        unit = 1 / jnp.sqrt(to_vector(block, _sizes(precision), u.shape[0]))  # in which the diagonal is one
        v = unit * jax.random.normal(keys[2], u.shape, u.dtype)
        gradient = jax.grad(self._log_density)
        product = -unit * hessian_products(gradient, near, lambda product: jax.vmap(product)(v[None])[0])[1]
        read = unit * _product(block, precision, v)
        return jnp.all(jnp.abs(product - read) <= jnp.sqrt(jnp.finfo(u.dtype).eps))

    def _log_density(self, u: Float[Array, " n"]) -> Float[Array, ""]:
        return self.latents.log_density(self.latents.split(u))

    def fit(
        self, start: Float[Array, " n"], key: PRNGKeyArray, *, tolerance: float = TOLERANCE, max_steps: int = 2000
    ) -> FoundBlocks:
        """Parameters by natural gradients; for a model that `has_structure`. See `fit_blocks`."""
        return fit_blocks(self._log_density, self._layout, start, key, tolerance=tolerance, max_steps=max_steps)


class FoundBlocks(NamedTuple):
    """A Gaussian that was found.

    Attributes:
      params: those of `Structured`.
      bounds: f[steps], the bound that the draws of each step estimate; NaN after the last.
      num_search: i[], steps of the search.
      num_average: i[], steps of the average.
      error: f[], the largest standard error, of loc in units of sd and of log sd.
      skipped: i[], steps of which an estimate was not finite, and that were not taken.
      misses: bool[], whether Hessians at points miss a part of the curvature, so that this is not the best Gaussian.
    """

    params: PyTree
    bounds: Float[Array, " steps"]
    num_search: Int[Array, ""]
    num_average: Int[Array, ""]
    error: Float[Array, ""]
    skipped: Int[Array, ""]
    misses: Bool[Array, ""]


class _State(NamedTuple):
    """What is carried from step to step.

    Attributes:
      loc: f[n], the mean.
      precision: Λ, as a tree.
      factors: those of Λ.
      curved: those at the end of the search.
      progress: how far the fit is.
    """

    loc: Array
    precision: PyTree
    factors: PyTree
    curved: PyTree
    progress: Progress


def fit_blocks(
    log_density: Callable[[Float[Array, " n"]], Float[Array, ""]],
    layout: Any,
    start: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = 2000,
) -> FoundBlocks:
    """Fits a Gaussian of blocks to a log density whose Hessian has their structure.

    The bound is stationary where E_q[∇ log p] = 0 and Λ = E_q[-∇² log p]. From draws u = loc ± d, with g and H the
    means of gradient and Hessian:

        search     Λ ← (1 - ρ) Λ - ρ H,   loc ← loc + ρ Λ⁻¹ g, with ρ, also zero in Λ, by a line search on the bound
        average    Λ ← (1 - ρ) Λ - ρ H,   loc ← loc + ρ C g, with C = Λ⁻¹ at the end of the search, new draws in each
                   step, and ρ = 1 / (t + 1). It ends when the standard errors of all means, in units of their sd, and
                   of all log sd are below `tolerance`

    A step costs as many products with the Hessian as there are probing vectors (`probes`), whatever the number of
    passes. Exact for a Gaussian log density after two steps.

    Args:
      log_density: differentiable almost everywhere, finite at the start; see `misses` of what is found.
      layout: which makes the blocks.
      start: where to begin.
      key: PRNG key.
      tolerance: standard errors below which the average ends.
      max_steps: the most steps of the average.

    Reference: Khan and Lin (2017), "Conjugate-computation variational inference", eq. (15); Khan and Rue (2023), "The
    Bayesian learning rule", section 3.
    """
    block, n, dtype = blocks_of(layout), start.shape[0], start.dtype

    def of(loc: Array, factors: PyTree) -> BlockGaussian:
        return BlockGaussian(loc, factors, layout)

    def bound(q: BlockGaussian, noise: Array) -> Array:
        entropy = log_det(q.factors) + n * (1 + jnp.log(2 * jnp.pi)) / 2
        return jnp.mean(jax.vmap(log_density)(q.of_noise(noise))) + entropy

    def goes_on(s: _State) -> Bool[Array, ""]:
        return s.progress.goes_on(tolerance, max_steps)

    def body(s: _State) -> _State:
        noise, own = s.progress.noise(key, n, dtype)
        q = of(s.loc, s.factors)
        seen = _expected(log_density, layout, s.loc, q.of_noise(noise) - s.loc, own)
        return lax.switch(s.progress.phase, (scaled, searched, averaged), s, q, seen, noise)

    def scaled(s: _State, q: BlockGaussian, seen: _Expected, noise: Array) -> _State:
        """Λ = |diag H|, at the start."""
        precision = _diagonal(seen.precision)
        return s._replace(precision=precision, factors=factorize(block, precision), progress=s.progress.scaled())

    def searched(s: _State, q: BlockGaussian, seen: _Expected, noise: Array) -> _State:
        here = bound(q, noise)
        rates = jnp.asarray([(r, r) for r in RATES] + [(r, 0.0) for r in RATES], dtype)

        def tried(rate: Array) -> tuple[tuple[Array, PyTree, PyTree], Array]:
            precision = _mixed(s.precision, seen.precision, rate[1])
            factors = factorize(block, precision)
            loc = s.loc + rate[0] * _inverse(of(s.loc, factors), seen.gradient)
            return (loc, precision, factors), bound(of(loc, factors), noise)

        found, bounds = lax.map(tried, rates)
        best = jnp.argmax(jnp.where(jnp.isfinite(bounds), bounds, -jnp.inf))  # no step leads to where it is not
        better = bounds[best] > here
        old = s.loc, s.precision, s.factors
        loc, precision, factors = jax.tree.map(lambda x, y: jnp.where(better, x[best], y), found, old)
        return _State(loc, precision, factors, factors, s.progress.searched(here, bounds[best]))

    def averaged(s: _State, q: BlockGaussian, seen: _Expected, noise: Array) -> _State:
        rate = s.progress.rate()
        move = _inverse(of(s.loc, s.curved), seen.gradient)
        move = move * jnp.minimum(1.0, jnp.sqrt(n / jnp.maximum(jnp.abs(seen.gradient @ move), n)))
        precision = _mixed(s.precision, seen.precision, rate)
        after = of(s.loc + rate * move, factorize(block, precision))
        here, variance = bound(after, noise), after.variance
        change = jnp.log(variance / q.variance) / (2 * rate)
        progress = s.progress.averaged(here, move**2 / variance, change**2, seen.missed)
        then = _State(after.loc, precision, after.factors, s.curved, progress)
        finite = jnp.all(jnp.isfinite(jnp.concatenate([after.loc, variance, seen.missed, here[None]])))
        before = s._replace(progress=s.progress.left_out())
        return jax.tree.map(functools.partial(jnp.where, finite), then, before)

    same = identity(block, jnp.ones((), dtype))
    first = _State(start, unit_precision(block, dtype), same, same, Progress.begin(n, dtype, max_steps))
    s = lax.while_loop(goes_on, body, first)
    p, params = s.progress, {"loc": s.loc} | s.factors
    return FoundBlocks(params, p.bounds, p.num_search, p.num_average(), p.error(), p.skipped, p.misses(tolerance))


class _Expected(NamedTuple):
    """Means over the draws.

    Attributes:
      gradient: f[n], of log p.
      precision: the negative Hessian, as a tree.
      missed: f[n], the diagonal of S E[-∇² log p] by the gradients, less that by the Hessians; see `fit_gaussian`.
    """

    gradient: Array
    precision: PyTree
    missed: Array


def _expected(log_density: Callable, layout: Any, loc: Array, deviations: Array, key: PRNGKeyArray) -> _Expected:
    """Means over loc + deviations, which come in pairs ± d."""
    block = blocks_of(layout)
    gradients, each = _derivatives(log_density, layout, loc, deviations, key)
    precision = jax.tree.map(lambda x: jnp.mean(x, 0), each)
    # Beside the gradients of a pair of draws stand the Hessians of the others, which are independent of it.
    own = jax.tree.map(lambda x: x + jnp.roll(x, PAIRS, 0), each)
    others = jax.tree.map(lambda mean, x: (2 * PAIRS * mean - x) / (2 * PAIRS - 2), precision, own)
    products = jax.vmap(functools.partial(_product, block))(others, deviations)
    return _Expected(jnp.mean(gradients, 0), precision, -jnp.mean(deviations * (gradients + products), 0))


def _product(block: Block, precision: PyTree, v: Float[Array, " n"]) -> Float[Array, " n"]:
    """Λ v."""
    return jax.grad(lambda v: quadratic(block, precision, to_tree(block, v)))(v)


def _derivatives(
    log_density: Callable, layout: Any, loc: Array, deviations: Array, key: PRNGKeyArray
) -> tuple[Array, PyTree]:
    """The gradient at each loc + deviation, and the negative Hessian as a tree."""
    block, n = blocks_of(layout), loc.shape[0]
    probe = probes(block)
    number = int(probe.max()) + 1
    gradient = jax.grad(log_density)

    def at(x: tuple[Array, PRNGKeyArray]) -> tuple[Array, PyTree]:
        d, key = x
        signs = jax.random.rademacher(key, (n,), loc.dtype)
        vectors = jnp.zeros((number, n), loc.dtype).at[probe, np.arange(n)].set(signs)
        in_turns = functools.partial(lax.map, xs=vectors, batch_size=min(16, number))
        here, products = hessian_products(gradient, loc + d, in_turns)
        return here, curvature(block, probe, products, signs)

    draws = deviations.shape[0]
    each = deviations, jax.random.split(key, draws)
    together = draws * min(16, number) * n <= _MOST_NUMBERS
    return jax.vmap(at)(each) if together else lax.map(at, each)


def _inverse(q: BlockGaussian, gradient: Array) -> Array:
    """S g."""
    zero = jnp.zeros_like(gradient)
    draw = lambda e: q.of_noise(e) - q.loc  # noqa: E731
    (transposed,) = jax.vjp(draw, zero)[1](gradient)
    return draw(transposed)


def _mixed(old: PyTree, new: PyTree, rate: Array | float) -> PyTree:
    return jax.tree.map(lambda x, y: (1 - rate) * x + rate * y, old, new)


def _sizes(precision: PyTree) -> PyTree:
    """The absolute diagonal, as a tree; 1 where it is zero or not finite."""
    size = jnp.abs(jnp.diagonal(precision["own"], axis1=-2, axis2=-1))
    size = jnp.where(jnp.isfinite(size) & (size > 0), size, 1.0)
    return {"own": size, "loops": {name: _sizes(p) for name, p in precision["loops"].items()}}


def _diagonal(precision: PyTree) -> PyTree:
    """The precision with the absolute diagonal, and nothing else."""
    size = _sizes(precision)["own"]
    zeros = {k: jnp.zeros_like(x) for k, x in precision.items() if k not in ("own", "loops")}
    loops = {name: _diagonal(p) for name, p in precision["loops"].items()}
    return zeros | {"own": size[..., None] * jnp.eye(size.shape[-1], dtype=size.dtype), "loops": loops}
