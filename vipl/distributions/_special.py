"""Special functions whose large parts cancel: log probabilities of large counts, tails of the Normal.

Log Γ of a large number is large, and so is its rounding error; a log probability is a small difference of such numbers.
Here log Γ(a) = (a - 1/2) log a - a + (log 2π) / 2 + δ(a), where δ is small, and what cancels is cancelled on paper
(C. Loader, Fast and accurate computation of binomial probabilities, 2000).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, ndtr

_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_LARGE = 8.0
_HALF_LOG_2PI = 0.9189385332046727


def _delta(a: Any) -> Any:
    """δ(a), for a >= 8."""
    y = 1 / (a * a)
    total = jnp.zeros_like(a)
    for c in reversed(_SERIES):
        total = total * y + c
    return total / a


def log_gamma_ratio(a: Any, x: Any) -> Any:
    """Log Γ(a + x) - log Γ(a), for x >= 0."""
    a, x = jnp.broadcast_arrays(a, x)
    large = a >= _LARGE
    b = jnp.where(large, a, _LARGE)
    stable = (b + x - 0.5) * jnp.log1p(x / b) + x * (jnp.log(b) - 1) + _delta(b + x) - _delta(b)
    return jnp.where(large, stable, gammaln(jnp.where(large, 1.0, a) + x) - gammaln(jnp.where(large, 1.0, a)))


def _log_factorial(x: Any) -> Any:
    """Log Γ(x + 1), which is 0 at 0 and 1 (JAX's is not, in float32)."""
    y = gammaln(x + 1)
    return y - jax.lax.stop_gradient(jnp.where((x == 0) | (x == 1), y, 0.0))


def _deviance(x: Any, mean: Any, log_mean: Any) -> Any:
    """X log (x / mean) + mean - x, for x > 0."""
    near = jnp.abs(x - mean) < 0.5 * mean
    u = jnp.where(near, (x - mean) / jnp.where(near, mean, 1.0), 0.0)
    return x * jnp.where(near, jnp.log1p(u), jnp.log(x) - jnp.where(near, 0.0, log_mean)) + (mean - x)


def log_poisson(x: Any, mean: Any, log_mean: Any) -> Any:
    """X log m - m - log Γ(x + 1), for x >= 0; 0 log 0 is 0."""
    x, mean, log_mean = jnp.broadcast_arrays(x, mean, log_mean)
    large = x >= _LARGE
    b = jnp.where(large, x, _LARGE)
    small = jnp.where(large, 0.0, x)
    power = jnp.where(small == 0, 0.0, small * jnp.where(small == 0, 0.0, log_mean))
    direct = power - mean - _log_factorial(small)
    stable = -_deviance(b, mean, log_mean) - _HALF_LOG_2PI - 0.5 * jnp.log(b) - _delta(b)
    return jnp.where(large, stable, direct)


def log_binomial(x: Any, y: Any, p: Any, q: Any, log_p: Any, log_q: Any) -> Any:
    """Log (Γ(x + y + 1) / Γ(x + 1) / Γ(y + 1) p^x q^y), for real x, y >= 0 and q = 1 - p; 0 log 0 is 0."""
    x, y, p, q, log_p, log_q = jnp.broadcast_arrays(x, y, p, q, log_p, log_q)
    both = (x >= _LARGE) & (y >= _LARGE)
    a, b = jnp.where(both, x, _LARGE), jnp.where(both, y, _LARGE)
    n = a + b
    stable = _delta(n) - _delta(a) - _delta(b) - _HALF_LOG_2PI - 0.5 * (jnp.log(a) + jnp.log(b / n))
    log_n = jnp.log(n)
    stable = stable - _deviance(a, n * p, log_n + log_p) - _deviance(b, n * q, log_n + log_q)
    a, b = jnp.where(both, 1.0, x), jnp.where(both, 1.0, y)
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    power = jnp.where(a == 0, 0.0, a * jnp.where((a == 0) | both, 0.0, log_p))
    power = power + jnp.where(b == 0, 0.0, b * jnp.where((b == 0) | both, 0.0, log_q))
    return jnp.where(both, stable, log_gamma_ratio(high + 1, low) - _log_factorial(low) + power)


def log_negative_binomial(x: Any, a: Any, p: Any, q: Any, log_p: Any, log_q: Any) -> Any:
    """Log (Γ(a + x) / Γ(a) / Γ(x + 1) p^a q^x)."""
    return -jnp.log1p(x / a) + log_binomial(a, x, p, q, log_p, log_q)


def log_polya(x: Any, a: Any, n: Any, total: Any) -> Any:
    """Log (Γ(a + x) / Γ(a) / Γ(x + 1)) + x log q + a log p, of a p = total / (total + n).

    A ratio of these, for the parts and for the whole, does not depend on p, which makes each of them small.
    """
    n, total = jax.lax.stop_gradient((n, total))
    log_p, log_q = -jnp.log1p(n / total), -jnp.log1p(total / jnp.where(n > 0, n, 1.0))
    return log_negative_binomial(x, a, total / (total + n), n / (total + n), log_p, log_q)


def log_ndtr(x: Any) -> Any:
    """Log Φ(x), and its derivatives, to the last digits in both tails; JAX's have 10 digits in the far left one."""
    x = jnp.asarray(x, jnp.result_type(float, x))
    edge = -15.0 if x.dtype == jnp.float64 else -8.0
    far, right = x < edge, x > 0
    middle = jnp.where(far | right, 0.0, x)
    z = jnp.where(far, x, edge)
    y, series = 1 / (z * z), jnp.ones_like(z)
    for k in range(12, 0, -1):
        series = 1 - (2 * k - 1) * y * series
    tail = -0.5 * z * z - jnp.log(-z) - _HALF_LOG_2PI + jnp.log(series)
    near = jnp.where(right, jnp.log1p(-ndtr(-jnp.where(right, x, 0.0))), jnp.log(ndtr(middle)))
    return jnp.where(far, tail, near)
