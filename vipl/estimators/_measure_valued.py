"""Measure-valued (weak) derivatives."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from vipl._types import Array, PRNGKeyArray
from vipl.distributions._draws import Point, Steps, in_support, innermost, transformed
from vipl.distributions._integers import CategoricalFrom
from vipl.errors import EstimatorError
from vipl.estimators._alternatives import Others, change, one_at_a_time, stacked
from vipl.estimators._local import LocalEnumerate
from vipl.gen import Draw, Estimator, Law

FINITE = (dist.BernoulliProbs, dist.BernoulliLogits, dist.CategoricalProbs, dist.CategoricalLogits, CategoricalFrom)
"""Families with d/dp_i E[k] = k(i): all values are alternatives."""


class MeasureValued(Estimator):
    """Measure-valued derivative: the derivative of a density is a difference of two densities.

    ∂p_θ/∂θ = c (p⁺ - p⁻),   so   ∂ E[k(x)] = c (E_{p⁺}[k] - E_{p⁻}[k]).

    The rest of the program is run again, without derivatives, for each alternative value, with the same noise
    (common random numbers) everywhere else. The alternatives are coupled with the draw: for all families but
    Normal's location, p⁺ or p⁻ is the draw itself. k need not be differentiable, nor continuous.

    Bernoulli, Categorical, Binomial and Geometric (in probs or logits), Poisson (rate), Normal and Laplace (location
    and scale), HalfNormal and Weibull (scale), Exponential and Gamma (rate), and elementwise transforms of these, such
    as LogNormal.

    Unbiased for value and first derivatives; a second derivative raises. Cost: the program is run once more for each
    alternative (3 for Normal and Laplace, 2 for Binomial, those of `LocalEnumerate` for Bernoulli and Categorical, else
    1) of each element of each site, step and lane, all under one `vmap`. Lanes whose costs are only summed are run
    again together.

    Raises:
      EstimatorError: the distribution has no such derivative here, or a parameter without one is differentiated.

    Reference: Mohamed, Rosca, Figurnov and Mnih (2020), "Monte Carlo gradient estimation in machine learning",
    section 6 and table 1; Heidergott, Vazquez-Abad and Volk-Makarewicz (2008) for the coupling of the scale.
    """

    def points(self, law: Law, key: PRNGKeyArray) -> Draw:
        """The draw and, for each element, its alternatives."""
        d = innermost(law.dist)  # its parameters broadcast to the shape of the draw
        if isinstance(d, FINITE):
            return LocalEnumerate().points(law, key)
        draw_key, other_key = jax.random.split(key)
        point = lax.stop_gradient(law.draw(draw_key))
        others = _others(d, point, other_key)
        alternatives = one_at_a_time(point.value, others)
        return Draw(point.value, alternatives=alternatives, fixed=without_derivative(d), point=law.standing(point))


def again(d: dist.Distribution, x: Array, key: PRNGKeyArray) -> Array:
    """A second draw, of the shape of the first."""
    return lax.stop_gradient(d.expand(x.shape).sample(key))  # type: ignore[return-value]


@functools.singledispatch
def others_of(d: dist.Distribution, x: Array, key: PRNGKeyArray) -> Others:
    """The alternatives of a family, coupled with its draw `x`; registered by distribution class."""
    raise EstimatorError(
        "a distribution has no measure-valued derivative here.",
        at="",
        got=f"MeasureValued() for {type(d).__name__}",
        expected="Bernoulli, Categorical, Binomial, Poisson, Geometric, Normal, Laplace, Exponential, Gamma, ...",
        fix="use Score(), or Reparam() where the distribution is reparametrized",
    )


@others_of.register(dist.BinomialProbs)
@others_of.register(dist.BinomialLogits)
def _binomial(d: dist.BinomialProbs | dist.BinomialLogits, x: Array, key: PRNGKeyArray) -> Others:
    """d/dp E[k] = n (E[k(y + 1)] - E[k(y)]), y of n - 1 trials: take one success away, or make one of a failure.

    Which of the n trials is left out is averaged: weights x and n - x.
    """
    del key
    p: Any = d.probs if isinstance(d, dist.BinomialProbs) else jax.nn.sigmoid(d.logits)  # type: ignore[arg-type]
    n = jnp.asarray(d.total_count)
    fewer, more = jnp.maximum(x - 1, 0), jnp.minimum(x + 1, n)
    return stacked(x, (fewer, -x * change(p)), (more.astype(x.dtype), (n - x) * change(p)))


@others_of.register
def _poisson(d: dist.Poisson, x: Array, key: PRNGKeyArray) -> Others:
    """d/dλ E[k] = E[k(x + 1) - k(x)]."""
    del key
    return stacked(x, (x + 1, change(d.rate)))


@others_of.register(dist.GeometricProbs)
@others_of.register(dist.GeometricLogits)
def _geometric(d: dist.GeometricProbs | dist.GeometricLogits, x: Array, key: PRNGKeyArray) -> Others:
    """d/dp E[k] = (E[k(x)] - E[k(x + 1 + x')]) / p, with x' a second draw."""
    p = d.probs if isinstance(d, dist.GeometricProbs) else jax.nn.sigmoid(d.logits)
    return stacked(x, (x + 1 + again(d, x, key), -change(p) / lax.stop_gradient(p)))


@others_of.register
def _normal(d: dist.Normal, x: Array, key: PRNGKeyArray) -> Others:
    """In location: two Rayleigh steps of opposite sign; in scale: double-sided Maxwell against the draw.

    d/dμ: p± = μ ± σ R, c = 1 / (σ sqrt(2π)).
    d/dσ: p⁺ = μ + σ M, p⁻ = p, c = 1/σ; given ε = (x - μ)/σ, M = sign(ε) sqrt(ε² + 2E) with E ~ Exp(1), since
    M U ~ N(0, 1) for U uniform.
    """
    loc, scale = jnp.asarray(lax.stop_gradient(d.loc)), jnp.asarray(lax.stop_gradient(d.scale))
    rayleigh_key, maxwell_key = jax.random.split(key)
    rayleigh = jnp.sqrt(2.0 * jax.random.exponential(rayleigh_key, x.shape, x.dtype))
    eps = (x - loc) / scale
    maxwell = jnp.sign(eps) * jnp.sqrt(eps**2 + 2.0 * jax.random.exponential(maxwell_key, x.shape, x.dtype))
    up = change(d.loc) / (scale * jnp.sqrt(2.0 * jnp.pi).astype(x.dtype))
    return stacked(
        x,
        (loc + scale * rayleigh, up),
        (loc - scale * rayleigh, -up),
        (loc + scale * maxwell, change(d.scale) / scale),
    )


@others_of.register
def _exponential(d: dist.Exponential, x: Array, key: PRNGKeyArray) -> Others:
    """d/dλ E[k] = (E[k(x)] - E[k(x + x')]) / λ, with x' a second draw."""
    return stacked(x, (x + again(d, x, key), -change(d.rate) / lax.stop_gradient(d.rate)))


@others_of.register
def _gamma(d: dist.Gamma, x: Array, key: PRNGKeyArray) -> Others:
    """d/dλ E[k] = (α/λ) (E[k(x)] - E[k(x + e)]), with e ~ Exponential(λ); none in α."""
    rate = jnp.asarray(lax.stop_gradient(d.rate))
    step = jax.random.exponential(key, x.shape, x.dtype) / rate
    return stacked(x, (x + step, -change(d.rate) * lax.stop_gradient(d.concentration) / rate))  # type: ignore[operator]


@others_of.register
def _half_normal(d: dist.HalfNormal, x: Array, key: PRNGKeyArray) -> Others:
    """In scale: Maxwell against the draw, as for Normal; c = 1/σ."""
    scale = jnp.asarray(lax.stop_gradient(d.scale))
    maxwell = jnp.sqrt((x / scale) ** 2 + 2.0 * jax.random.exponential(key, x.shape, x.dtype))
    return stacked(x, (scale * maxwell, change(d.scale) / scale))


@others_of.register
def _laplace(d: dist.Laplace, x: Array, key: PRNGKeyArray) -> Others:
    """In location: p± = μ ± b E, c = 1 / (2 b); in scale: |x - μ| + b E against the draw, c = 1 / b; E ~ Exp(1)."""
    loc, scale = jnp.asarray(lax.stop_gradient(d.loc)), jnp.asarray(lax.stop_gradient(d.scale))
    step_key, more_key = jax.random.split(key)
    step = scale * jax.random.exponential(step_key, x.shape, x.dtype)
    more = scale * jax.random.exponential(more_key, x.shape, x.dtype)
    up = change(d.loc) / (2.0 * scale)
    return stacked(
        x,
        (loc + step, up),
        (loc - step, -up),
        (x + jnp.sign(x - loc) * more, change(d.scale) / scale),
    )


@others_of.register
def _weibull(d: dist.Weibull, x: Array, key: PRNGKeyArray) -> Others:
    """In scale λ: (x/λ)^k ~ Exp(1), so that x^k has another λ^k Exp(1) added, c = k/λ; none in the concentration."""
    scale, k = jnp.asarray(lax.stop_gradient(d.scale)), jnp.asarray(lax.stop_gradient(d.concentration))
    more = ((x / scale) ** k + jax.random.exponential(key, x.shape, x.dtype)) ** (1.0 / k)
    return stacked(x, (scale * more, change(d.scale) * k / scale))


def _others(d: dist.Distribution, point: Point, key: PRNGKeyArray) -> Others:
    """The alternatives of a point; of one by elementwise transforms (LogNormal, ...) those of its base, transformed."""
    if not isinstance(d, dist.TransformedDistribution) or not isinstance(point.coordinates, Steps):
        return others_of(d, point.value, key)
    if any(t.domain.event_dim or t.codomain.event_dim for t in d.transforms):
        return others_of(d, point.value, key)
    others = _others(innermost(d.base_dist), point.coordinates.base, key)
    return others._replace(values=in_support(d, transformed(d, others.values)))


def without_derivative(d: dist.Distribution) -> list[Any]:
    """The parameters in which a family has no measure-valued derivative here."""
    if isinstance(d, dist.TransformedDistribution):
        return [*jax.tree.leaves(d.transforms), *without_derivative(innermost(d.base_dist))]
    return [d.concentration] if isinstance(d, (dist.Gamma, dist.Weibull)) else []
