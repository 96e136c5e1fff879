"""Estimators that run the program again at other values of one site."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl.errors import EstimatorError
from vipl.estimators._enumerate import finite_support, is_impossible
from vipl.estimators._logits import bernoulli_logits
from vipl.gen import Alternatives, Draw, Estimator, Law


class Others(NamedTuple):
    """Alternatives of every element of a distribution.

    Attributes:
      values: [n, *shape], other values of each element.
      weights: f[n, *shape], (θ - sg θ) c for each element: zero in value.
    """

    values: Any
    weights: Any


def stacked(x: Any, *others: tuple[Any, Any]) -> Others:
    """Pairs of a value and a weight, that broadcast to the draw `x`, as alternatives of every element."""
    values, weights = (jnp.stack([jnp.broadcast_to(v, x.shape) for v in part]) for part in zip(*others, strict=True))
    return Others(values, weights)


def one_at_a_time(x: Any, others: Others) -> Alternatives:
    """Alternatives of a whole array: in each, one element takes one of its other values.

    Args:
      x: [*shape], the draw.
      others: n other values of every element.

    Returns:
      values [n * size, *shape], weights of the same length.
    """
    n, size = others.values.shape[0], x.size
    here = jnp.eye(size, dtype=bool).reshape(size, *x.shape)
    values = jnp.where(here, others.values[:, None], x)
    return Alternatives(values.reshape(n * size, *x.shape), others.weights.reshape(n * size))


def change(theta: Any) -> Any:
    """θ - sg θ: zero, with derivative 1."""
    return theta - lax.stop_gradient(theta)


def all_values(x: Any, values: Any, log_probs: Any) -> Alternatives:
    """All values [n] of a finite support with f[n, batch], each element's in turn: ∂E[k] = Σ_j ∂p_j k(j).

    A value whose probability is zero is not looked at: there ∂p_j = 0.
    """
    if x.size > 1 or values.shape[0] == 2:
        return one_at_a_time(x, other_values(x, values, log_probs))
    # The draw's own value among them counts nothing, and is run for this: the same values for all draws, and lanes.
    log_probs = log_probs.reshape(-1)
    return Alternatives(values.reshape(-1, *x.shape), change(jnp.exp(log_probs)), ~is_impossible(log_probs))


def other_values(x: Any, values: Any, log_probs: Any) -> Others:
    """All other values of each element of a finite support; instead of an impossible one stands the draw."""
    n = values.shape[0]
    log_probs = jnp.broadcast_to(
        log_probs.reshape(n, *[1] * (x.ndim + 1 - log_probs.ndim), *log_probs.shape[1:]), (n, *x.shape)
    )
    here = jnp.argmax(x == values.reshape(n, *[1] * x.ndim), axis=0)
    other = (here + jnp.arange(1, n).reshape(n - 1, *[1] * x.ndim)) % n  # i[n - 1, *shape]
    log_p = jnp.take_along_axis(log_probs, other, axis=0)
    return Others(jnp.where(is_impossible(log_p), x, values[other]), change(jnp.exp(log_p)))


class LocalEnumerate(Estimator):
    """Enumerates one site at a time, the others sampled: local expectation gradients.

    ∂ E[k(x)] = Σ_j ∂p_j k(j);   the term of the draw itself is that of the main run.

    The rest of the program is run again for each other value of each element, step and lane, without derivatives,
    with the same noise, under one `vmap`: linear in the number of sites, where `Enumerate` is exponential. Lanes whose
    costs are only summed are run again together. Any finite support. (Of a single element with more than two values
    all are run, the draw's own too: they are then the same for all draws.)
    For Bernoulli and Categorical it is `MeasureValued`.

    Unbiased for value and first derivatives; a second derivative raises.

    Raises:
      EstimatorError: the support is not finite.

    Reference: Titsias and Lazaro-Gredilla (2015), eq. (6).
    """

    def points(self, law: Law, key: Any) -> Draw:
        """The draw, and all other values of each element."""
        x = law.sample(key)
        return Draw(x, alternatives=all_values(x, *finite_support(law, "LocalEnumerate()")))


class CoupledAlternative(Estimator):
    """Measure-valued derivative with one surviving alternative for all sites that have this estimator.

    Of the N runs that `LocalEnumerate` would make, over elements, steps and lanes, one is drawn uniformly, and
    its term counts N times: one more run of the program, whatever N. Paths are coupled: the survivor has the noise
    of the draw everywhere else.

    Unbiased for value and first derivatives; a second derivative raises. Variance grows with N; between that of
    `Score` and that of `LocalEnumerate`.

    Raises:
      EstimatorError: the support is not finite.

    Reference: Arya et al. (2022), "Automatic differentiation of programs with discrete randomness", section 2.4.
    """

    def points(self, law: Law, key: Any) -> Draw:
        """The draw, and all other values, to be pruned."""
        x = law.sample(key)
        others = other_values(x, *finite_support(law, "CoupledAlternative()"))
        return Draw(x, pruned=one_at_a_time(x, others) if len(others.values) else None)


class DisARM(Estimator):
    """Augment-REINFORCE-merge with an antithetic pair, the uniform integrated out; Bernoulli.

    b = 1[u < σ(φ)], b' = 1[u > σ(-φ)];   ∂_φi = (1/2) (k(b) - k(b')) (b_i - b'_i) σ(|φ_i|).

    All elements of a site change to b' together: one more run of the program for each visit, whatever its size.

    Unbiased for value and first derivatives in the logits (or the probabilities behind them); a second derivative
    raises. A flip whose probability is 0 or 1, or rounds to it, is certain, and has a derivative of 0.

    Raises:
      EstimatorError: the distribution is not a Bernoulli.

    Reference: Dong, Mnih and Tucker (2020), eq. (5).
    """

    def points(self, law: Law, key: Any) -> Draw:
        """The draw and its antithetic partner."""
        return _antithetic(
            law, key, "DisARM()", lambda b, other, phi, u: 0.5 * (b - other) * jax.nn.sigmoid(jnp.abs(phi))
        )


class ARM(Estimator):
    """Augment-REINFORCE-merge; Bernoulli.

    b = 1[u < σ(φ)], b' = 1[u > σ(-φ)];   ∂_φi = (k(b') - k(b)) (u_i - 1/2).

    As `DisARM`, of larger variance.

    Unbiased for value and first derivatives; a second derivative raises.

    Raises:
      EstimatorError: the distribution is not a Bernoulli.

    Reference: Yin and Zhou (2019), theorem 1.
    """

    def points(self, law: Law, key: Any) -> Draw:
        """The draw and its antithetic partner."""
        return _antithetic(law, key, "ARM()", lambda b, other, phi, u: 0.5 - u)


def _antithetic(law: Law, key: Any, who: str, slope: Any) -> Draw:
    """The draw b, and b' beside it, with ∂_φi = slope_i (k(b) - k(b'))."""
    phi = bernoulli_logits(law)
    if phi is None:
        raise EstimatorError(
            "an antithetic estimator stands at a distribution that is not a Bernoulli.",
            at="",
            got=f"{who} for {type(law.dist).__name__}",
            expected="Bernoulli",
            fix="use LocalEnumerate(), MeasureValued() or Score()",
        )
    u = jax.random.uniform(key, phi.shape, phi.dtype)
    fixed = lax.stop_gradient(phi)
    b, other = u < jax.nn.sigmoid(fixed), u > jax.nn.sigmoid(-fixed)
    slopes = slope(b.astype(phi.dtype), other.astype(phi.dtype), fixed, u)
    dtype = jax.eval_shape(lambda: law.sample(jax.random.key(0))).dtype
    certain = jnp.isinf(fixed)
    weight = -jnp.sum(jnp.where(certain, 0, slopes * change(jnp.where(certain, 0, phi))))
    return Draw(b.astype(dtype), alternatives=Alternatives(other.astype(dtype)[None], weight[None]))
