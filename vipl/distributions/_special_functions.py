"""Special functions whose large parts cancel: log probabilities of large counts, of large concentrations, normal tails.

Log Γ of a large number is large, and so is its rounding error; a log probability is a small difference of such numbers.
Here log Γ(a) = (a - 1/2) log a - a + (log 2π) / 2 + δ(a), where δ is small, and what cancels is cancelled on paper
(C. Loader, Fast and accurate computation of binomial probabilities, 2000).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, ndtr
from numpy.typing import ArrayLike

from vipl._types import Array, Float

_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_LARGE = 8.0
_HALF_LOG_2PI = 0.9189385332046727


def _delta(a: Array) -> Array:
    """δ(a), for a >= 8."""
    y = 1 / (a * a)
    total = jnp.zeros_like(a)
    for c in reversed(_SERIES):
        total = total * y + c
    return total / a


def log_gamma_ratio(a: Array, x: Array | float) -> Array:
    """Log Γ(a + x) - log Γ(a), for x >= 0."""
    a, x = jnp.broadcast_arrays(a, x)
    large = a >= _LARGE
    b = jnp.where(large, a, _LARGE)
    stable = (b + x - 0.5) * jnp.log1p(x / b) + x * (jnp.log(b) - 1) + _delta(b + x) - _delta(b)
    return jnp.where(large, stable, gammaln(jnp.where(large, 1.0, a) + x) - gammaln(jnp.where(large, 1.0, a)))


def _log_factorial(x: Array) -> Array:
    """Log Γ(x + 1), which is 0 at 0 and 1 (JAX's is not, in float32)."""
    y = gammaln(x + 1)
    return y - jax.lax.stop_gradient(jnp.where((x == 0) | (x == 1), y, 0.0))


def _deviance(x: Array, mean: Array, log_mean: Array) -> Array:
    """X log (x / mean) + mean - x, for x > 0."""
    near = jnp.abs(x - mean) < 0.5 * mean
    u = jnp.where(near, (x - mean) / jnp.where(near, mean, 1.0), 0.0)
    return x * jnp.where(near, jnp.log1p(u), jnp.log(x) - jnp.where(near, 0.0, log_mean)) + (mean - x)


def log_poisson(x: Array, mean: Array, log_mean: Array) -> Array:
    """X log m - m - log Γ(x + 1), for x >= 0; 0 log 0 is 0."""
    x, mean, log_mean = jnp.broadcast_arrays(x, mean, log_mean)
    large = x >= _LARGE
    small = jnp.where(large, 0.0, x)
    power = jnp.where(small == 0, 0.0, small * jnp.where(small == 0, 0.0, log_mean))
    direct = power - mean - _log_factorial(small)
    return jnp.where(large, _log_poisson_large(jnp.where(large, x, _LARGE), mean, log_mean), direct)


def _log_poisson_large(x: Array, mean: Array, log_mean: Array) -> Array:
    return -_deviance(x, mean, log_mean) - _HALF_LOG_2PI - 0.5 * jnp.log(x) - _delta(x)


def log_gamma(a: Array, mean: Array, log_mean: Array) -> Array:
    """(a - 1) log m - m - log Γ(a), for a > 0: a Gamma of m = r x, without the factor r.

    What depends on a alone is computed in its shape, which is often far smaller than that of x.
    """
    large = a >= _LARGE + 1
    small = jnp.where(large, 1.0, a)
    direct = (small - 1) * jnp.where(large, 0.0, log_mean) - mean - gammaln(small)
    return jnp.where(large, _log_poisson_large(jnp.where(large, a - 1, _LARGE), mean, log_mean), direct)


def log_dirichlet(a: Array, x: Array, log_x: Array, excess: Array | float = 0.0) -> Array:
    """Log Γ(Σ a_i) + Σ_i ((a_i - 1) log x_i - log Γ(a_i)), of Σ x_i = 1 + `excess`.

    Each part is that of a Gamma with the mean t x_i. The sum does not depend on t, and t = Σ a_i makes the parts small.
    """
    total = jnp.sum(a, axis=-1)
    t = jax.lax.stop_gradient(total)
    log_t = jnp.log(t)
    parts = log_gamma(a, t[..., None] * x, log_t[..., None] + log_x)
    return jnp.sum(parts, axis=-1) - log_gamma(total, t, log_t) + (a.shape[-1] - 1) * log_t + t * excess


def log_binomial(x: Array, y: Array, p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
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


def log_negative_binomial(x: Array, a: Array, p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    """Log (Γ(a + x) / Γ(a) / Γ(x + 1) p^a q^x)."""
    return -jnp.log1p(x / a) + log_binomial(a, x, p, q, log_p, log_q)


def log_polya(x: Array, a: Array) -> Array:
    """Log (Γ(n + 1) Γ(A) / Γ(A + n)) + Σ_i log (Γ(a_i + x_i) / Γ(a_i) / Γ(x_i + 1)), of n = Σ x_i and A = Σ a_i.

    Each part, and the whole, is that of a negative binomial with p = A / (A + n). The sum does not depend on p, and
    this p makes the parts small. They are computed as one array, since programs of log Γ are slow to compile.
    """
    x, a = jnp.broadcast_arrays(x, a)
    n, total = jnp.sum(x, axis=-1, keepdims=True), jnp.sum(a, axis=-1, keepdims=True)
    x, a = jnp.concatenate([x, n], axis=-1), jnp.concatenate([a, total], axis=-1)
    n, total = jax.lax.stop_gradient((n, total))
    log_p, log_q = -jnp.log1p(n / total), -jnp.log1p(total / jnp.where(n > 0, n, 1.0))
    parts = log_negative_binomial(x, a, total / (total + n), n / (total + n), log_p, log_q)
    return jnp.sum(parts[..., :-1], axis=-1) - parts[..., -1]


def log_ndtr(x: Array) -> Array:
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


def log_ray(t: Array, square: Array, across: Array, n: int) -> Array:
    """Log ∫ r^n N(r x; c, 1) dr over r > 0, but for n log √2π: t = c x, square = |c|², across = |c|² - t²; n is 1 or 2.

    The moments of N(t, 1) over r > 0 are φ(t) + t Φ(t) and t φ(t) + (1 + t²) Φ(t), which lose all digits far below 0.
    There Φ(t) = φ(t) / (z + K) with K = 1 / (z + L), L = 2 / (z + 3 / (z + ...)) and z = -t.
    """
    far = t < -2.5
    z = jnp.where(far, -t, 2.5)
    fraction = 0.5 * (z + jnp.sqrt(z * z + 4 * 81))  # where f = z + 81 / f, which the rest of the fraction is next to
    for k in range(80, 2, -1):
        fraction = z + k / fraction
    second = 2 / fraction
    first = 1 / (z + second)
    ratio = first / (z + first) if n == 1 else second / ((z + second) * (z + first))
    near = jnp.where(far, 0.0, t)
    density, mass = jnp.exp(-0.5 * near**2 - _HALF_LOG_2PI), ndtr(near)
    moment = density + near * mass if n == 1 else near * density + (1 + near**2) * mass
    return jnp.where(far, jnp.log(ratio) - _HALF_LOG_2PI - 0.5 * square, jnp.log(moment) - 0.5 * across)


def log_ndtr_of_bound(x: Array) -> Array:
    """Log Φ(x), of an x that may be infinite."""
    finite = jnp.isfinite(x)
    return jnp.where(finite, log_ndtr(jnp.where(finite, x, 0.0)), jnp.where(x > 0, 0.0, -jnp.inf))


def log1mexp(x: Array) -> Array:
    """Log (1 - exp(x)) for x < 0."""
    near = x > -0.6931472
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -0.5))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def log_sinhc(w: Array) -> Array:
    """Log (sinh(w) / w), even and smooth."""
    near = jnp.abs(w) < 0.3
    y = jnp.where(near, w, 0.0) ** 2
    series = jnp.log1p(y / 6 * (1 + y / 20 * (1 + y / 42 * (1 + y / 72 * (1 + y / 110 * (1 + y / 156))))))
    v = jnp.where(near, 1.0, jnp.abs(w))
    return jnp.where(near, series, v + jnp.log(-jnp.expm1(-2 * v)) - jnp.log(2 * v))


def floating(x: ArrayLike) -> Float[Array, ...]:
    """`x` as an array of floats of the default precision."""
    return jnp.asarray(x, jnp.result_type(float))


def inexact(x: ArrayLike) -> Float[Array, ...]:
    """`x` as an array of floats of its own precision, or of the default one if it has integers."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else floating(x)


def times_log(x: Array, p: Array) -> Array:
    """X log p: 0 where x is 0, otherwise -inf with a derivative of 0 where p is 0."""
    possible = p > 0
    log_p = jnp.where(possible, jnp.log(jnp.where(possible, p, 1)), -jnp.inf)
    return jnp.where(x == 0, 0, x * jnp.where(x == 0, 0, log_p))


def times_log1m(x: Array, p: Array) -> Array:
    """X log (1 - p): 0 where x is 0, otherwise -inf with a derivative of 0 where p is 1."""
    possible = p < 1
    log_q = jnp.where(possible, jnp.log1p(-jnp.where(possible, p, 0)), -jnp.inf)
    return jnp.where(x == 0, 0, x * jnp.where(x == 0, 0, log_q))
