"""Exact enumeration of finite supports."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

from vipl._types import Array, PRNGKeyArray
from vipl.distributions._integers import CategoricalFrom
from vipl.errors import EstimatorError
from vipl.gen import Estimator, Law, Points
from vipl.ir.rows import rows_p

MAX_POINTS = 2**20


class Enumerate(Estimator):
    """Sums over all values of a site; no noise.

    E[k(x)] = Σ_i p_i k(i),   and its derivatives term by term.

    Bernoulli, Categorical, Binomial, DiscreteUniform, BetaBinomial and others with a finite support. Exact for
    value and all derivatives. Only what depends on the value is evaluated several times; but a site inside `scan` is
    enumerated *jointly* over the steps, at a cost of (size of the support)^steps. So are lanes of a `vmap`, and
    elements of a vector, unless the objective is a sum over them: then each lane is summed on its own, all at
    once, at a cost of (size of the support). Where lanes meet only in the last
    equations, as the particles of a bound do, only these are evaluated for all joint values. With
    `lax.scan(..., unroll=True)` each step is evaluated for the values of the steps before it, and not for all.

    What depends on the value alone is computed once for all lanes of the program. A value of probability zero has
    weight zero and is not evaluated (another value stands in), so that log 0 in the program does no harm. The
    derivative in a probability that is exactly 0 or 1 is then that of what is evaluated alone: use `logits` there.

    Attributes:
      all_possible: promises that no value has probability zero, so that none needs a stand-in. In a `vmap` of
        `estimate` the values are then the same in all lanes, and what depends on a value alone is computed once for
        all: about twice as fast where the program does little else. If the promise is broken, the estimate is right,
        and its derivatives may be NaN.

    Raises:
      EstimatorError: the support is not finite, depends on a traced value, or has more than 2^20 points.
    """

    all_possible: bool = False

    def points(self, law: Law, key: PRNGKeyArray) -> Points:
        """All values with their probabilities."""
        del key
        values, log_probs = finite_support(law, "Enumerate()")  # [n], f[n, batch]
        batch = jnp.shape(log_probs)[1:]
        size, count = values.shape[0], math.prod(batch)
        if size**count > MAX_POINTS:
            raise EstimatorError(
                "a site has too many values to enumerate.",
                at="",
                got=f"{size}^{count} values",
                expected=f"at most {MAX_POINTS}",
                fix="use MeasureValued() or Score(); or split the site",
            )
        if count == 1:
            log_weights = log_probs.reshape(size)
            possible = None if self.all_possible else ~is_impossible(log_weights)
            return Points(values.reshape(-1, *batch), log_weights, possible)
        digits = digit_table(size, count)  # i[n**count, count]
        flat = log_probs.reshape(size, count)
        if self.all_possible:
            return Points(values[digits].reshape(size**count, *batch), jnp.sum(flat[digits, np.arange(count)], axis=1))
        best = jnp.argmax(lax.stop_gradient(flat), axis=0)
        impossible = is_impossible(flat)[digits, np.arange(count)]  # [n**count, count]
        chosen = jnp.where(impossible, best, digits)
        log_weights = jnp.sum(flat[chosen, np.arange(count)], axis=1)
        log_weights = jnp.where(jnp.any(impossible, axis=1), -jnp.inf, log_weights)
        return Points(values[chosen].reshape(size**count, *batch), log_weights)


def digit_table(base: int, length: int) -> np.ndarray:
    """i[base**length, length], all numbers of `length` digits, first digit slowest."""
    return np.indices((base,) * length, dtype=np.int32).reshape(length, base**length).T


def is_impossible(log_probs: Array) -> Array:
    """bool[...], where a probability is zero, or so small that the dtype has no ordinary number for it.

    Such a value is not to be evaluated: zero times what comes out of it may be NaN.
    """
    return log_probs < np.log(float(jnp.finfo(log_probs.dtype).tiny))


def finite_support(law: Law, who: str) -> tuple[Array, Array]:
    """The values of one element of a distribution, i[n], and their log probabilities, f[n, *batch_shape].

    The event of a distribution made by `to_event` counts as batch.
    """
    d = elementwise(law.dist)
    try:
        values = d.enumerate_support(expand=False)
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        raise EstimatorError(
            "a distribution has no finite support that is known when the program is staged.",
            at="",
            got=f"{who} for {type(law.dist).__name__}",
            expected="Bernoulli, Categorical, Binomial, DiscreteUniform, ... with sizes that are Python integers",
            fix="use Score(), or MeasureValued() where it exists; pass sizes as Python integers, and write sites of "
            "their own for sizes that differ",
        ) from error
    if isinstance(d, (dist.CategoricalLogits, dist.CategoricalProbs, CategoricalFrom)):  # the row, instead of a gather
        row: Any = d.logits
        if not isinstance(d, dist.CategoricalProbs):  # as NumPyro does, so that the compiler finds one and the same
            row = row - jax.nn.logsumexp(row, axis=-1, keepdims=True)
        return values.reshape(-1), jnp.moveaxis(row, -1, 0)
    if values.shape[0] == 2:  # one by one, so that lanes come last, of which there may be many
        rows = [jnp.broadcast_to(d.log_prob(value), d.batch_shape) for value in values.reshape(2)]
        return values.reshape(2), rows_p.bind(*rows)
    log_probs = d.log_prob(values)
    return values.reshape(values.shape[0]), jnp.broadcast_to(log_probs, (values.shape[0], *d.batch_shape))


def elementwise(d: dist.Distribution) -> dist.Distribution:
    """The distribution whose batch shape is batch and event shape of `d`, if `d` was made by `to_event`."""
    return elementwise(d.base_dist) if isinstance(d, dist.Independent) else d
