"""Densities of NumPyro whose derivatives are wrong at single points, mended.

`BernoulliLogits` and `BinomialLogits` compute max(x, 0) + log1p(exp(-|x|)), whose derivative at the logit x = 0 (where
most training begins) JAX takes to be 0 or 1 instead of 1/2. Here it is softplus(x).
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln


class BernoulliLogits(dist.BernoulliLogits):
    """log p(x) = x φ - softplus(φ)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability: of an integer (-inf where it is neither 0 nor 1), or of a relaxed flip."""
        value, logits = jnp.asarray(value), jnp.asarray(self.logits)
        if jnp.issubdtype(value.dtype, jnp.floating):
            return value * logits - jax.nn.softplus(logits)
        return _log_bernoulli(value, logits)


@jax.custom_jvp
def _log_bernoulli(value: Any, logits: Any) -> Any:
    """-softplus(-s φ) for the sign s = 2 x - 1, also at infinite logits; -inf for an x that is neither 0 nor 1.

    In few operations: XLA's compiler for CPUs splits a longer pass over the data between threads, which for a small
    batch costs more than it brings.
    """
    return _bernoulli_parts(value, logits)[0]


def _bernoulli_parts(value: Any, logits: Any) -> tuple[Any, Any, Any]:
    """The log probability, s and exp(-|φ|)."""
    sign = 2 * value.astype(logits.dtype) - 1
    e = _decay(logits)
    log_prob = jnp.minimum(sign * logits, 0) - jnp.log1p(e)
    return jnp.where(sign * sign == 1, log_prob, -jnp.inf), sign, e


@_log_bernoulli.defjvp
def _log_bernoulli_jvp(primals: Any, tangents: Any) -> Any:
    """D log p(x) / dφ = s σ(-s φ), by the same exponential.

    The division comes first here, so last in the transposed program: XLA fuses what is before it into one pass, and
    repeats what is cheap and comes after it in everything that reads the cotangent.
    """
    log_prob, sign, e = _bernoulli_parts(*primals)
    likely = (primals[1] > 0) == (sign > 0)  # σ(-s φ) is e / (1 + e) there, and 1 / (1 + e) elsewhere
    return log_prob, tangents[1] / (1 + e) * (sign * jnp.where(likely, e, 1))


@jax.custom_jvp
def _decay(u: Any) -> Any:
    """exp(-|u|), with the derivative from the left at 0, so that functions of it that are smooth are smooth there."""
    return jnp.exp(-jnp.abs(u))


@_decay.defjvp
def _decay_jvp(primals: Any, tangents: Any) -> Any:
    (u,) = primals
    e = _decay(u)
    return e, jnp.where(u > 0, -e, e) * tangents[0]


class BinomialLogits(dist.BinomialLogits):
    """log p(x) = log (n choose x) + x φ - n softplus(φ)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        n = jnp.asarray(self.total_count)
        choose = gammaln(n + 1.0) - gammaln(value + 1.0) - gammaln(n - value + 1.0)
        return choose + _logit_log_prob(value, n, self.logits)


def _logit_log_prob(value: Any, n: Any, logits: Any) -> Any:
    """X φ - n softplus(φ), without 0 · inf at infinite logits."""
    up, down = -jax.nn.softplus(-logits), -jax.nn.softplus(logits)  # log p, log (1 - p)
    return jnp.where(value == 0, 0.0, value * jnp.where(value == 0, 0.0, up)) + jnp.where(
        value == n, 0.0, (n - value) * jnp.where(value == n, 0.0, down)
    )


_MENDED = {dist.BernoulliLogits: BernoulliLogits, dist.BinomialLogits: BinomialLogits}


def mended(d: Any) -> Any:
    """The same distribution, with the densities of this module in it and in its parts."""
    if not isinstance(d, dist.Distribution):
        return d
    changes = {}
    for name, part in vars(d).items():
        if isinstance(part, dist.Distribution):
            new = mended(part)
        elif isinstance(part, (list, tuple)) and any(isinstance(x, dist.Distribution) for x in part):
            new = type(part)([mended(x) for x in part])
            new = part if all(a is b for a, b in zip(new, part, strict=True)) else new
        else:
            continue
        if new is not part:
            changes[name] = new
    cls = _MENDED.get(type(d))
    if cls is None and not changes:
        return d
    new = copy.copy(d)
    for name, part in changes.items():
        setattr(new, name, part)
    if cls is not None:
        new.__class__ = cls
    return new
