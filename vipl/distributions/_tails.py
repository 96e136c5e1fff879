"""Continuous families that lose digits, or have wrong derivatives, at single points; each class says what it does."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import i0e

from vipl._types import Array, Float
from vipl.distributions import _special_functions as special
from vipl.distributions._special_functions import inexact, log1mexp


def _log1p_square(z: Array, df: Array | float) -> Array:
    """Log (1 + z² / df), of a z whose square may overflow."""
    far = jnp.abs(z) > 1e6
    big = jnp.where(far, jnp.abs(z), 1.0)
    far_log = 2.0 * jnp.log(big) - jnp.log(df) + jnp.log1p(df / big / big)
    return jnp.where(far, far_log, jnp.log1p(jnp.where(far, 0.0, z) ** 2 / df))


class StudentT(dist.StudentT):
    """log p(x) of z = (x - loc) / scale, by log (1 + z² / ν) of a z whose square may overflow."""

    loc: Array

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        df, scale = inexact(self.df), inexact(self.scale)
        tail = 0.5 * (df + 1.0) * _log1p_square((value - self.loc) / scale, df)
        normalizer = jnp.log(scale) + 0.5 * jnp.log(df) + 0.5 * jnp.log(jnp.pi)
        return special.log_gamma_ratio(0.5 * df, 0.5) - normalizer - tail


class MultivariateStudentT(dist.MultivariateStudentT):
    """log p(x), with a ratio of gamma functions that holds for large ν."""

    loc: Array
    scale_tril: Array

    def log_prob(self, value: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        df, n = inexact(self.df), self.event_shape[0]
        z = _whiten(self.scale_tril, value - self.loc)
        log_det = jnp.sum(jnp.log(jnp.diagonal(inexact(self.scale_tril), axis1=-2, axis2=-1)), axis=-1)
        normalizer = 0.5 * n * (jnp.log(df) + jnp.log(jnp.pi)) + log_det - special.log_gamma_ratio(0.5 * df, 0.5 * n)
        return -0.5 * (df + n) * jnp.log1p(jnp.sum(z * z, axis=-1) / df) - normalizer


def _whiten(scale_tril: Array, x: Array) -> Array:
    """L⁻¹ x, with batches on both."""
    shape = jnp.broadcast_shapes(jnp.shape(scale_tril)[:-2], jnp.shape(x)[:-1])
    scale_tril = jnp.broadcast_to(scale_tril, (*shape, *jnp.shape(scale_tril)[-2:]))
    x = jnp.broadcast_to(x, (*shape, jnp.shape(x)[-1]))
    return solve_triangular(scale_tril, x[..., None], lower=True)[..., 0]


class Cauchy(dist.Cauchy):
    """log p(x) of a z = (x - loc) / scale whose square may overflow."""

    loc: Array

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        scale = inexact(self.scale)
        return -jnp.log(jnp.pi) - jnp.log(scale) - _log1p_square((value - self.loc) / scale, 1.0)


class VonMises(dist.VonMises):
    """log p(x) = -2 κ sin² ((x - loc) / 2) - log (2π I0(κ) exp(-κ))."""

    loc: Array

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        k = inexact(self.concentration)
        return -2 * k * jnp.sin(0.5 * (value - self.loc)) ** 2 - jnp.log(2 * jnp.pi) - jnp.log(i0e(k))


class Kumaraswamy(dist.Kumaraswamy):
    """log p(x) = log a b + (a - 1) log x + (b - 1) log (1 - x^a), with 1 - x^a not clipped."""

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        a, b = inexact(self.concentration1), inexact(self.concentration0)
        log_x = jnp.log(value)
        return jnp.log(a) + jnp.log(b) + (a - 1) * log_x + (b - 1) * log1mexp(a * log_x)


class DoublyTruncatedPowerLaw(dist.DoublyTruncatedPowerLaw):
    """log p(x) = α log x - log ∫ t^α dt, the integral by sinh(w) / w of w = (α + 1) log (high / low) / 2.

    NumPyro's derivatives in the bounds are those of the density, not of its logarithm.
    """

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        alpha, low, high = (jnp.asarray(t) for t in (self.alpha, self.low, self.high))
        low, high = jnp.log(low), jnp.log(high)
        gap = high - low
        mass = jnp.log(gap) + 0.5 * (alpha + 1) * (high + low) + special.log_sinhc(0.5 * (alpha + 1) * gap)
        return alpha * jnp.log(value) - mass


class TruncatedPolyaGamma(dist.TruncatedPolyaGamma):
    """The density of a Polya-Gamma(1, 0), by whichever of its two series converges at once."""

    def log_prob(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        n = jnp.arange(6) + 0.5
        sign = jnp.where(jnp.arange(6) % 2 == 0, 1.0, -1.0)
        small = value < 0.16
        x = jnp.where(small, value, 0.16)
        ratio = jnp.sum(sign * 2 * n * jnp.exp(-(n**2 - 0.25) / 2 / x[..., None]), axis=-1)
        left = -0.125 / x - 1.5 * jnp.log(x) - 0.5 * jnp.log(2 * jnp.pi) + jnp.log(ratio)
        y = jnp.where(small, 0.16, value)
        ratio = jnp.sum(sign * 2 * n * jnp.exp(-2 * jnp.pi**2 * (n**2 - 0.25) * y[..., None]), axis=-1)
        return jnp.where(small, left, jnp.log(2 * jnp.pi) - 0.5 * jnp.pi**2 * y + jnp.log(ratio))


class ProjectedNormal(dist.ProjectedNormal):
    """log p(x) = log ∫ r^(d - 1) N(r x; c, 1) dr over r > 0, also opposite to c."""

    def log_prob(self, value: Float[Array, "*batch n"], intermediates: None = None) -> Float[Array, "*batch"]:
        """f[...], the log density."""
        c, x = jnp.broadcast_arrays(inexact(self.concentration), value)
        n = c.shape[-1] - 1
        if n not in (1, 2):
            return super().log_prob(value, intermediates)
        across = jnp.cross(c, x) if n == 2 else c[..., :1] * x[..., 1:] - c[..., 1:] * x[..., :1]
        ray = special.log_ray(jnp.sum(c * x, -1), jnp.sum(c * c, -1), jnp.sum(across**2, -1), n)
        return ray - 0.5 * n * jnp.log(2 * jnp.pi)
