"""A Gaussian for the real choices of a model with discrete ones: the frame in which stochastic gradients begin.

With u the real choices in unconstrained coordinates, k the discrete ones, and q_l(k) = Π_i softmax(l_i) independent of
each other,

    f(u, l) = E_{k ~ q_l}[log p(u, k, y) - log q_l(k)],   F(u) = f(u, l(u)),   l(u) = K ∂f/∂l (u, 0) for K values.

Law: F is at most log p(u, y), and equal to it where the discrete choices are independent given u: at l = 0, where all
values are equally likely, the derivative in l_iv is (1/K) (a_iv - the mean of a_i), a_iv the expected log density with
k_i = v, so that l(u) are the logits of the exact conditional distribution.

The derivative of F is taken as ∂f/∂u (u, l(u)): where l(u) are the best logits, what their own derivative adds is zero.

A Gaussian is fitted to F by natural gradients, which do not depend on units.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.estimators import Enumerate
from vipl.expectation import expectation
from vipl.gen import Program
from vipl.gen._choices import Choices, flatten, nest
from vipl.guides import FullRank, MeanField
from vipl.guides._combine import Combined
from vipl.guides._gaussian import Look, by_hessians, by_secants, fit_by, lower_triangular
from vipl.guides._guide import Start
from vipl.guides._once import run_once
from vipl.interpret.seed import seed

MOST_STEPS = 200
"""The most steps of the average: a frame need not be exact."""

NUM_STARTS = 64
"""Draws from the prior of which the search may begin at one, where no start is asked for."""


class _Frame(NamedTuple):
    """Where stochastic gradients begin.

    Attributes:
      loc: f[n], of the coordinates.
      scale_tril: f[n, n].
      logits: of each discrete choice, at loc.
      finite: bool[], whether all of these are numbers.
      misses: bool[], see `Moments`.
    """

    loc: Array
    scale_tril: Array
    logits: list[Array]
    finite: Array
    misses: Array


def framed(
    guide: Any, model: Program, data: Choices, start: Start, key: PRNGKeyArray
) -> tuple[Combined, PyTree] | None:
    """A guide whose real part has a frame, and parameters to begin with.

    Args:
      guide: of a model with real and discrete choices.
      model: the model.
      data: the observed choices.
      start: see `Guide.init`.
      key: PRNG key.

    Returns:
      None where the guide is not a `FullRank` beside a `MeanField` of discrete choices that are enumerated, or where no
      finite frame is found.
    """
    parts = _parts(guide)
    if parts is None:
        return None
    (real_name, real), (discrete_name, discrete) = parts
    u = real.latents.join(guide.start(key, start))
    num_starts = NUM_STARTS if start is None else 0
    things = real, discrete, model, dict(data)
    try:
        fn = functools.partial(_fit, num_starts=num_starts, look=by_hessians)
        found = run_once("a frame beside discrete choices", fn, things, (u, key), static=num_starts)
        if found.misses:
            fn = functools.partial(_fit, num_starts=num_starts, look=by_secants)
            found = run_once("a frame by secants beside discrete choices", fn, things, (u, key), static=num_starts)
    except Exception:  # no second derivatives, say; what is wrong with the model itself is raised by the fit
        return None
    if not found.finite:
        return None
    own = real.with_options(frame=(found.loc, found.scale_tril))
    whole = Combined({name: own if name == real_name else part for name, part in guide.parts.items()})
    params = {real_name: FullRank.of_moments(jnp.zeros_like(found.loc), jnp.eye(len(found.loc), dtype=found.loc.dtype))}
    return whole, params | {discrete_name: _params(discrete, found.logits)}


def _parts(guide: Any) -> tuple[tuple[str, FullRank], tuple[str, MeanField]] | None:
    """The real and the discrete part of a guide that has these two."""
    if not isinstance(guide, Combined) or len(guide.parts) != 2:
        return None
    real = [(n, p) for n, p in guide.parts.items() if type(p) is FullRank and p.frame is None]
    discrete = [(n, p) for n, p in guide.parts.items() if type(p) is MeanField and not p.latents.real]
    if len(real) != 1 or len(discrete) != 1:
        return None
    part = discrete[0][1]
    enumerated = all(isinstance(part._estimator(x), Enumerate) for x in part.latents.discrete)
    return (real[0], discrete[0]) if enumerated else None


def _params(discrete: MeanField, logits: list[Array]) -> PyTree:
    return nest({x.address: {"logits": v} for x, v in zip(discrete.latents.discrete, logits, strict=True)})


def bound_at(real: FullRank, discrete: MeanField, model: Program, data: Choices, key: PRNGKeyArray) -> Any:
    """F and l as functions of u: (u) -> f[], (u) -> the logits of each discrete choice."""

    @expectation
    def bound(u: Float[Array, " n"], logits: list[Array]) -> Array:
        choices, log_det = real.latents.constrain(real.latents.split(u))
        drawn = discrete(_params(discrete, logits)).simulate()
        every = nest(choices | flatten(drawn.choices, "draws") | flatten(data, "data"))
        return model.assess(every).log_prob + log_det - drawn.log_prob

    zeros = [jnp.zeros(x.shape if x.is_flip else (*x.shape, x.number)) for x in discrete.latents.discrete]
    numbers = [4 if x.is_flip else x.number for x in discrete.latents.discrete]  # σ' is 1/4 at zero

    def f(u: Array, logits: list[Array]) -> Array:
        return bound.estimate_anew(key, u, logits)

    def logits_at(u: Array) -> list[Array]:
        return [k * g for k, g in zip(numbers, jax.grad(f, argnums=1)(u, zeros), strict=True)]

    @jax.custom_jvp
    def density(u: Array) -> Array:
        return f(u, logits_at(u))

    @density.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (u,) = primals
        value, gradient = jax.value_and_grad(f)(u, logits_at(u))
        return value, gradient @ tangents[0]

    return density, logits_at


def _fit(
    real: FullRank,
    discrete: MeanField,
    model: Program,
    data: Choices,
    u: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    num_starts: int,
    look: Look,
) -> _Frame:
    density, logits_at = bound_at(real, discrete, model, data, key)
    if num_starts:
        u = _best(density, jnp.concatenate([u[None], _of_prior(real, model, key, num_starts)]))
    found = fit_by(look, density, u, key, max_steps=MOST_STEPS)
    scale_tril, logits = lower_triangular(found.factor), logits_at(found.loc)
    numbers = [density(found.loc), found.loc, scale_tril, *logits]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in numbers]))
    return _Frame(found.loc, scale_tril, logits, finite & jnp.all(jnp.diagonal(scale_tril) > 0), found.misses)


def _of_prior(real: FullRank, model: Program, key: PRNGKeyArray, num: int) -> Float[Array, "num n"]:
    """The coordinates of draws from the model."""

    def one(key: PRNGKeyArray) -> Array:
        drawn = flatten(seed(lambda: model.simulate().choices)(key), model.name)
        return real.latents.join(real.latents.unconstrain({x.address: drawn[x.address] for x in real.latents.real})[0])

    return jax.vmap(one)(jax.random.split(key, num))


def _best(density: Callable[[Array], Array], starts: Float[Array, "num n"]) -> Float[Array, " n"]:
    """The start of the highest density; those at which it is not finite do not count."""
    values = jax.lax.map(density, starts)
    return starts[jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))]
