"""Flips and categories, by logits and by probabilities.

- `BernoulliLogits` and `BinomialLogits` compute max(x, 0) + log1p(exp(-|x|)), whose derivative at the logit x = 0
  (where most training begins) JAX takes to be 0 or 1 instead of 1/2. Here it is softplus(x).
- Families by `probs` clip a probability p to [tiny, 1 - eps], so that log(1 - p) has the slope 0 beyond that. Here it
  is log1p(-p) to the last digit that p has, and -inf (with a derivative of 0) where p says that a value is impossible.
- `CategoricalProbs`, and so `MultinomialProbs`, draws its first value, also an impossible one, where the uniform number
  is 0.
- `OrderedLogistic` subtracts probabilities that may round to the same number.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import gammaln

from vipl._jax import Tracer
from vipl._types import Array, ArrayLike, Float, Int, Num, PRNGKeyArray
from vipl.distributions import _special_functions as special
from vipl.distributions._special_functions import floating, inexact, log1mexp, times_log, times_log1m


class BernoulliLogits(dist.BernoulliLogits):
    """log p(x) = x φ - softplus(φ)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability: of an integer (-inf where it is neither 0 nor 1), or of a relaxed flip."""
        value, logits = jnp.asarray(value), inexact(self.logits)
        if jnp.issubdtype(value.dtype, jnp.floating):
            return value * logits - jax.nn.softplus(logits)
        return _log_bernoulli(value, logits)


@jax.custom_jvp
def _log_bernoulli(value: Array, logits: Array) -> Array:
    """-softplus(-s φ) for the sign s = 2 x - 1, also at infinite logits; -inf for an x that is neither 0 nor 1.

    In few operations: XLA's compiler for CPUs splits a longer pass over the data between threads, which for a small
    batch costs more than it brings.
    """
    return _bernoulli_parts(value, logits)[0]


def _bernoulli_parts(value: Array, logits: Array) -> tuple[Array, Array, Array]:
    """The log probability, s and exp(-|φ|)."""
    sign = 2 * value.astype(logits.dtype) - 1
    e = _decay(logits)
    log_prob = jnp.minimum(sign * logits, 0) - jnp.log1p(e)
    return jnp.where(sign * sign == 1, log_prob, -jnp.inf), sign, e


@_log_bernoulli.defjvp
def _log_bernoulli_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """D log p(x) / dφ = s σ(-s φ), by the same exponential.

    The division comes first here, so last in the transposed program: XLA fuses what is before it into one pass, and
    repeats what is cheap and comes after it in everything that reads the cotangent.
    """
    log_prob, sign, e = _bernoulli_parts(*primals)
    likely = (primals[1] > 0) == (sign > 0)  # σ(-s φ) is e / (1 + e) there, and 1 / (1 + e) elsewhere
    return log_prob, tangents[1] / (1 + e) * (sign * jnp.where(likely, e, 1))


LOG_BERNOULLI = f"_log_bernoulli at {__file__}:"
"""How `_jax.named_function` names the function."""


LARGE = 16.0
"""Up to which logits x φ - softplus(φ) is summed as two sums, whose difference keeps most of its digits."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def total_log_bernoulli(
    value: Int[Array, "..."],
    logits: Float[Array, "..."],
    coefficients: Float[Array, "..."] | None,
    lanes: tuple[int, ...],
    axes: tuple[int, ...],
    all_of: tuple[str, ...],
) -> Float[Array, "..."]:
    """Σ_i c_i log p(x_i) for logits that all lanes have in common, as products of matrices.

    With φ⁺ = max(φ, 0) and φ⁻ = min(φ, 0),

        log p(x) = x φ - softplus(φ) = x φ⁻ - (1 - x) φ⁺ - log1p(exp(-|φ|)):

    by the first, one product, where all logits are small; else by the second, whose terms have one sign. Infinite
    logits and values that are neither 0 nor 1 are looked for only there: what contradicts them makes the sum infinite.
    Where the sum is infinite, its derivative in the coefficients is that of the terms that are finite.

    Args:
      value: x, i[...].
      logits: φ, the same shape, but of length 1 along the lanes.
      coefficients: c, of the shape of the values; None: 1 everywhere.
      lanes: the axes of lanes.
      axes: those that are summed over.
      all_of: names of the `vmap`s around that it is one choice for.
    """
    small = jnp.all(jnp.abs(logits) <= LARGE) & jnp.all((value == 0) | (value == 1))
    if all_of:
        small = lax.pmin(small.astype(jnp.int32), all_of) == 1

    def product(value, logits, coefficients):
        if coefficients is None:
            return _inner(value, logits, lanes, axes) - jnp.sum(jax.nn.softplus(logits), axes)
        above = _inner(coefficients, jax.nn.softplus(logits), lanes, axes)
        return _inner(coefficients * value, logits, lanes, axes) - above

    def guarded(value, logits, coefficients):
        c = jnp.ones(value.shape, logits.dtype) if coefficients is None else coefficients
        infinite = jnp.isinf(logits)
        never, always = ((infinite & (sign * logits > 0)).astype(logits.dtype) for sign in (-1, 1))

        def wrong(counts):
            """Whether the values that count contradict a logit, or are none of a flip."""
            count = _inner(jnp.where(counts, value, 0), never, lanes, axes)
            count += _inner(jnp.where(counts, 1 - value, 0), always, lanes, axes)
            return jnp.any(counts & (value != 0) & (value != 1), axes) | (count > 0)

        total = _finite_total(value, logits, c, lanes, axes)
        return total + jnp.where(wrong(c > 0), -jnp.inf, 0.0) + jnp.where(wrong(c < 0), jnp.inf, 0.0)

    return lax.cond(small, product, guarded, value, logits, coefficients)


def _finite_total(value: Array, logits: Array, c: Array, lanes: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """The sum, term by term of one sign, where x φ is finite."""
    finite = jnp.where(jnp.isinf(logits), 0, logits)
    contradicted = _inner(c * value, jnp.minimum(finite, 0), lanes, axes)
    contradicted -= _inner(c * (1 - value), jnp.maximum(finite, 0), lanes, axes)
    return contradicted - _inner(c, jnp.log1p(_decay(logits)), lanes, axes)


def _inner(x: Array, y: Array, lanes: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Σ x y over axes, for y of length 1 along the lanes."""
    every = tuple(range(x.ndim))
    kept, out = [a for a in every if a not in lanes], [a for a in every if a not in axes]
    y = jnp.squeeze(y, lanes)
    return jnp.einsum(x.astype(y.dtype), every, y, kept, out, precision=lax.Precision.HIGHEST)


@total_log_bernoulli.defjvp
def _total_log_bernoulli_jvp(
    lanes: tuple[int, ...],
    axes: tuple[int, ...],
    all_of: tuple[str, ...],
    primals: tuple[Array, Array, Array | None],
    tangents: tuple[Array, Array, Array | None],
) -> tuple[Array, Array]:
    """D Σ_i c_i log p(x_i) = Σ_i c_i (x_i - σ(φ_i)) dφ_i + Σ_i dc_i log p(x_i)."""
    (value, logits, c), (_, change, dc) = primals, tangents
    mean = jax.nn.sigmoid(logits) * change
    if c is None:
        slope = _inner(value, change, lanes, axes) - jnp.sum(mean, axes)
    else:
        slope = _inner(c * value, change, lanes, axes) - _inner(c, mean, lanes, axes)
        slope += _finite_total(value, logits, jnp.asarray(dc), lanes, axes)
    return total_log_bernoulli(value, logits, c, lanes, axes, all_of), slope


@jax.custom_jvp
def _decay(u: Array) -> Array:
    """exp(-|u|), with the derivative from the left at 0, so that functions of it that are smooth are smooth there."""
    return jnp.exp(-jnp.abs(u))


@_decay.defjvp
def _decay_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (u,) = primals
    e = _decay(u)
    return e, jnp.where(u > 0, -e, e) * tangents[0]


class BinomialLogits(dist.BinomialLogits):
    """log p(x) = log (n choose x) + x φ - n softplus(φ)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        value, n, logits = floating(value), floating(self.total_count), inexact(self.logits)
        p, q = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
        return special.log_binomial(value, n - value, p, q, -jax.nn.softplus(-logits), -jax.nn.softplus(logits))


# --- by probabilities ------------------------------------------------------------------------------------------


class BernoulliProbs(dist.BernoulliProbs):
    """log p(x) = x log p + (1 - x) log (1 - p)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        value, p = floating(value), inexact(self.probs)
        return times_log(value, p) + times_log1m(1 - value, p)


class BinomialProbs(dist.BinomialProbs):
    """log p(x) = log (n choose x) + x log p + (n - x) log (1 - p)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        value, n, p = floating(value), floating(self.total_count), inexact(self.probs)
        one = jnp.ones_like(p)
        return special.log_binomial(value, n - value, p, 1 - p, times_log(one, p), times_log1m(one, p))


class GeometricProbs(dist.GeometricProbs):
    """log p(x) = log p + x log (1 - p)."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        value, p = floating(value), inexact(self.probs)
        return times_log1m(value, p) + times_log(jnp.ones_like(p), p)


class MultinomialProbs(dist.MultinomialProbs):
    """log p(x) = log n! + Σ_i (x_i log p_i - log x_i!); draws are those of a Categorical, counted."""

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """i[...], a draw; nothing of probability 0 is counted."""
        p, n = inexact(self.probs), jnp.asarray(self.total_count)
        most = self.total_count_max
        if most is None:
            if isinstance(n, Tracer):
                return super().sample(key, sample_shape)  # which says what is missing
            most = int(jnp.max(n)) if n.size else 0
        p = jnp.broadcast_to(p, (*self.batch_shape, p.shape[-1]))
        drawn = CategoricalProbs.sample(dist.CategoricalProbs(p), key, (most, *sample_shape))
        counted = jnp.arange(most) < n[..., None]
        counted = jnp.moveaxis(jnp.broadcast_to(counted, (*self.batch_shape, most)), -1, 0)
        counted = counted.reshape(most, *(1 for _ in sample_shape), *self.batch_shape)
        return jnp.sum((drawn[..., None] == jnp.arange(p.shape[-1])) & counted[..., None], axis=0)

    def log_prob(self, value: Num[ArrayLike, "*batch n"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        value = floating(value)
        terms = times_log(value, inexact(self.probs)) - gammaln(value + 1.0)
        return gammaln(jnp.asarray(self.total_count) + 1.0) + jnp.sum(terms, axis=-1)


class CategoricalProbs(dist.CategoricalProbs):
    """The first value whose cumulative probability exceeds a uniform number, among those that are possible."""

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """i[...], a draw."""
        p = inexact(self.probs)
        total = jnp.cumsum(p, axis=-1)
        u = jax.random.uniform(key, (*sample_shape, *self.batch_shape, 1))
        found = (total / total[..., -1:] > u) & (p > 0)
        last = p.shape[-1] - 1 - jnp.argmax(p[..., ::-1] > 0, axis=-1)  # where rounding leaves none
        return jnp.where(jnp.any(found, axis=-1), jnp.argmax(found, axis=-1), last)


class OrderedLogistic(dist.OrderedLogistic):
    """p(k) = σ(c_k - φ) - σ(c_{k-1} - φ) = σ(c_k - φ) σ(φ - c_{k-1}) (1 - exp(c_{k-1} - c_k))."""

    def log_prob(self, value: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        c = inexact(self.cutpoints)
        t = inexact(self.predictor)[..., None]
        up, gaps = -jax.nn.softplus(t - c), log1mexp(-jnp.diff(c, axis=-1))
        down = -jax.nn.softplus(c - t)
        middle = up[..., 1:] + down[..., :-1] + gaps
        table = jnp.concatenate([up[..., :1], middle, down[..., -1:]], axis=-1)
        value = jnp.asarray(value)
        table = jnp.broadcast_to(table, (*jnp.broadcast_shapes(value.shape, table.shape[:-1]), table.shape[-1]))
        index = jnp.broadcast_to(value, table.shape[:-1]).astype(int)[..., None]
        return jnp.take_along_axis(table, index, axis=-1)[..., 0]
