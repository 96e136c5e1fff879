"""Measure-valued (weak) derivatives."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from vipl._errors import EstimatorError
from vipl.estimators._enumerate import finite_support
from vipl.gen import Alternatives, Draw, Estimator, Law
from vipl.gen._density import innermost


class Branch(NamedTuple):
    """One alternative of every element of a distribution.

    Attributes:
      value: [*shape], the other value of each element.
      weight: f[*shape], (θ - sg θ) c for each element: zero in value.
    """

    value: Any
    weight: Any


class MeasureValued(Estimator):
    """Measure-valued derivative: the derivative of a density is a difference of two densities.

    ∂p_θ/∂θ = c (p⁺ - p⁻),   so   ∂ E[k(x)] = c (E_{p⁺}[k] - E_{p⁻}[k]).

    The rest of the program is run again, without derivatives, for each alternative value, with the same noise
    (common random numbers) everywhere else. The alternatives are coupled with the draw: for all families but
    Normal's location, p⁺ or p⁻ is the draw itself. k need not be differentiable, nor continuous.

    Bernoulli and Categorical (in probs or logits), Poisson and Geometric (rate, probs or logits), Normal
    (location and scale), Exponential and Gamma (rate).

    Unbiased for value and first derivatives; a second derivative raises. Cost: the
    program is run once more for each alternative (3 for Normal, size - 1 for Categorical, else 1) of each element of
    each site, step and lane, all under one `vmap`.

    Raises:
      EstimatorError: the distribution has no such derivative here, or a parameter without one is differentiated.

    Reference: Mohamed, Rosca, Figurnov and Mnih (2020), "Monte Carlo gradient estimation in machine learning",
    section 6 and table 1; Heidergott, Vazquez-Abad and Volk-Makarewicz (2008) for the coupling of the scale.
    """

    def points(self, law: Law, key: Any) -> Draw:
        """The draw and, for each element, its alternatives."""
        draw_key, other_key = jax.random.split(key)
        x = lax.stop_gradient(law.sample(draw_key))
        d = innermost(law.dist)  # its parameters broadcast to the shape of the draw
        branches = branches_of(d, x, other_key)
        fixed = d.concentration if isinstance(d, dist.Gamma) else None
        return Draw(x, alternatives=one_at_a_time(x, branches), fixed=fixed)


def one_at_a_time(x: Any, branches: list[Branch]) -> Alternatives:
    """Alternatives of a whole array: in each, one element takes one of its other values.

    Args:
      x: [*shape], the draw.
      branches: the other values of every element.

    Returns:
      values [len(branches) * size, *shape], weights of the same length.
    """
    size = x.size
    here = jnp.eye(size, dtype=bool).reshape(size, *x.shape)
    values = [jnp.where(here, b.value, x) for b in branches]
    weights = [jnp.broadcast_to(b.weight, x.shape).reshape(size) for b in branches]
    return Alternatives(jnp.concatenate(values), jnp.concatenate(weights))


def change(theta: Any) -> Any:
    """θ - sg θ: zero, with derivative 1."""
    return theta - lax.stop_gradient(theta)


def again(d: Any, x: Any, key: Any) -> Any:
    """A second draw, of the shape of the first."""
    return lax.stop_gradient(d.expand(x.shape).sample(key))


@functools.singledispatch
def branches_of(d: Any, x: Any, key: Any) -> list[Branch]:
    """The alternatives of a family, coupled with its draw `x`; registered by distribution class."""
    raise EstimatorError(
        "a distribution has no measure-valued derivative here.",
        at="",
        got=f"MeasureValued() for {type(d).__name__}",
        expected="Bernoulli, Categorical, Poisson, Geometric, Normal, Exponential or Gamma",
        mend="use Score(), or Reparam() where the distribution is reparametrized",
    )


@branches_of.register(dist.BernoulliProbs)
@branches_of.register(dist.BernoulliLogits)
def _bernoulli(d: Any, x: Any, key: Any) -> list[Branch]:
    """d/dp E[k] = k(1) - k(0): the alternative is the other side of the coin."""
    del key
    p = d.probs if isinstance(d, dist.BernoulliProbs) else jax.nn.sigmoid(d.logits)
    return [Branch(1 - x, change(p) * jnp.where(x == 0, 1.0, -1.0))]


@branches_of.register(dist.CategoricalProbs)
@branches_of.register(dist.CategoricalLogits)
def _categorical(d: Any, x: Any, key: Any) -> list[Branch]:
    """d/dp_i E[k] = k(i): all other values are alternatives; but not those whose logit is -inf, where dp_i = 0."""
    del key
    _, log_probs = finite_support(Law(d), "MeasureValued()")
    n = log_probs.shape[0]
    log_probs = jnp.broadcast_to(jnp.moveaxis(log_probs, 0, -1), (*x.shape, n))
    others = [(x + j) % n for j in range(1, n)]
    log_p = [jnp.take_along_axis(log_probs, y[..., None], -1)[..., 0] for y in others]
    return [Branch(jnp.where(lp == -jnp.inf, x, y), change(jnp.exp(lp))) for lp, y in zip(log_p, others, strict=True)]


@branches_of.register
def _poisson(d: dist.Poisson, x: Any, key: Any) -> list[Branch]:
    """d/dλ E[k] = E[k(x + 1) - k(x)]."""
    del key
    return [Branch(x + 1, change(d.rate))]


@branches_of.register(dist.GeometricProbs)
@branches_of.register(dist.GeometricLogits)
def _geometric(d: Any, x: Any, key: Any) -> list[Branch]:
    """d/dp E[k] = (E[k(x)] - E[k(x + 1 + x')]) / p, with x' a second draw."""
    p = d.probs if isinstance(d, dist.GeometricProbs) else jax.nn.sigmoid(d.logits)
    return [Branch(x + 1 + again(d, x, key), -change(p) / lax.stop_gradient(p))]


@branches_of.register
def _normal(d: dist.Normal, x: Any, key: Any) -> list[Branch]:
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
    return [
        Branch(loc + scale * rayleigh, up),
        Branch(loc - scale * rayleigh, -up),
        Branch(loc + scale * maxwell, change(d.scale) / scale),
    ]


@branches_of.register
def _exponential(d: dist.Exponential, x: Any, key: Any) -> list[Branch]:
    """d/dλ E[k] = (E[k(x)] - E[k(x + x')]) / λ, with x' a second draw."""
    return [Branch(x + again(d, x, key), -change(d.rate) / lax.stop_gradient(d.rate))]


@branches_of.register
def _gamma(d: dist.Gamma, x: Any, key: Any) -> list[Branch]:
    """d/dλ E[k] = (α/λ) (E[k(x)] - E[k(x + e)]), with e ~ Exponential(λ); none in α."""
    rate = jnp.asarray(lax.stop_gradient(d.rate))
    step = jax.random.exponential(key, x.shape, x.dtype) / rate
    return [Branch(x + step, -change(d.rate) * lax.stop_gradient(d.concentration) / rate)]
