"""Families of NumPyro whose densities, derivatives or draws are wrong at single points or extreme parameters, mended.

- `BernoulliLogits` and `BinomialLogits` compute max(x, 0) + log1p(exp(-|x|)), whose derivative at the logit x = 0
  (where most training begins) JAX takes to be 0 or 1 instead of 1/2. Here it is softplus(x).
- Families by `probs` clip a probability p to [tiny, 1 - eps], so that log(1 - p) has the slope 0 beyond that. Here it
  is log1p(-p) to the last digit that p has, and -inf (with a derivative of 0) where p says that a value is impossible.
- `CategoricalProbs` draws its first value, also an impossible one, where the uniform number is 0.
- A truncated family has NaN as its derivative where a bound is infinite.
- `StudentT` squares a number that may overflow.
- A zero-inflated family takes the logarithm of a sum of probabilities that may underflow; a hurdle of a Poisson that of
  1 - exp(-r) of a small r. Both have NaN as their derivative at a gate of exactly 0 or 1.
- Log probabilities of large counts, and of StudentT with many degrees of freedom, are differences of large log gamma
  functions. Here they are those of `_special`.
- Log densities of large concentrations are differences of large numbers, too: those of `_gammas`.
- A censored family clips probabilities, so that far in a tail it is a constant: those of `_censored`.
- Others lose digits, or have wrong derivatives, at single points; each class below says what it does instead.
- `MultinomialProbs` draws an impossible value where a uniform number is 0.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln, i0e
from numpyro.distributions import discrete
from numpyro.distributions.transforms import Transform

from vipl._jax import Tracer
from vipl.distributions import _special
from vipl.distributions._censored import LeftCensored, RightCensored
from vipl.distributions._flows import with_functions
from vipl.distributions._gammas import Beta, BetaProportion, Chi2, Dirichlet, Gamma, InverseGamma
from vipl.distributions._special import log1mexp, log_ndtr_of_bound


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
        value, n, logits = _floating(value), _floating(self.total_count), jnp.asarray(self.logits)
        p, q = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
        return _special.log_binomial(value, n - value, p, q, -jax.nn.softplus(-logits), -jax.nn.softplus(logits))


# --- by probabilities ------------------------------------------------------------------------------------------


def times_log(x: Any, p: Any) -> Any:
    """X log p: 0 where x is 0, otherwise -inf with a derivative of 0 where p is 0."""
    possible = p > 0
    log_p = jnp.where(possible, jnp.log(jnp.where(possible, p, 1)), -jnp.inf)
    return jnp.where(x == 0, 0, x * jnp.where(x == 0, 0, log_p))


def times_log1m(x: Any, p: Any) -> Any:
    """X log (1 - p): 0 where x is 0, otherwise -inf with a derivative of 0 where p is 1."""
    possible = p < 1
    log_q = jnp.where(possible, jnp.log1p(-jnp.where(possible, p, 0)), -jnp.inf)
    return jnp.where(x == 0, 0, x * jnp.where(x == 0, 0, log_q))


class BernoulliProbs(dist.BernoulliProbs):
    """log p(x) = x log p + (1 - x) log (1 - p)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        value, p = _floating(value), jnp.asarray(self.probs)
        return times_log(value, p) + times_log1m(1 - value, p)


class BinomialProbs(dist.BinomialProbs):
    """log p(x) = log (n choose x) + x log p + (n - x) log (1 - p)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        value, n, p = _floating(value), _floating(self.total_count), jnp.asarray(self.probs)
        one = jnp.ones_like(p)
        return _special.log_binomial(value, n - value, p, 1 - p, times_log(one, p), times_log1m(one, p))


class GeometricProbs(dist.GeometricProbs):
    """log p(x) = log p + x log (1 - p)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        value, p = _floating(value), jnp.asarray(self.probs)
        return times_log1m(value, p) + times_log(jnp.ones_like(p), p)


class MultinomialProbs(dist.MultinomialProbs):
    """log p(x) = log n! + Σ_i (x_i log p_i - log x_i!); draws are those of a Categorical, counted."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """i[...], a draw; nothing of probability 0 is counted."""
        p, n = jnp.asarray(self.probs), jnp.asarray(self.total_count)
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

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        value = _floating(value)
        terms = times_log(value, jnp.asarray(self.probs)) - gammaln(value + 1.0)
        return gammaln(jnp.asarray(self.total_count) + 1.0) + jnp.sum(terms, axis=-1)


class CategoricalProbs(dist.CategoricalProbs):
    """The first value whose cumulative probability exceeds a uniform number, among those that are possible."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """i[...], a draw."""
        p = jnp.asarray(self.probs)
        total = jnp.cumsum(p, axis=-1)
        u = jax.random.uniform(key, (*sample_shape, *self.batch_shape, 1))
        found = (total / total[..., -1:] > u) & (p > 0)
        last = p.shape[-1] - 1 - jnp.argmax(p[..., ::-1] > 0, axis=-1)  # where rounding leaves none
        return jnp.where(jnp.any(found, axis=-1), jnp.argmax(found, axis=-1), last)


class ZeroInflatedProbs(discrete.ZeroInflatedProbs):
    """p(x) = gate [x = 0] + (1 - gate) base(x)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        gate, base = jnp.asarray(self.gate), self.base_dist.log_prob(value)
        return jnp.where(value == 0, _log_of_zero(gate, base), times_log1m(jnp.ones_like(gate), gate) + base)


def _log_of_zero(gate: Any, base: Any) -> Any:
    """Log (g + (1 - g) exp(base)) for base <= 0, with its derivatives at g = 0 and g = 1, too.

    Large g: log (1 - (1 - g) (1 - exp(base))). Else base + log (1 + g (exp(-base) - 1)), unless exp(-base) is large.
    """
    gate, base = jnp.broadcast_arrays(gate, base)
    often, ratio = gate >= 0.5, (gate == 0) | (base > -30)
    g = jnp.where(often, 0.25, gate)
    odds = jnp.expm1(jnp.minimum(jnp.where(ratio, -base, 1.0), 0.99 * jnp.log(jnp.finfo(base.dtype).max)))
    by_ratio = base + jnp.log1p(jnp.where(ratio, g, 0.0) * odds)
    by_sum = jnp.logaddexp(jnp.log(jnp.where(ratio, 0.25, g)), jnp.log1p(-g) + base)
    by_rest = jnp.log1p((1 - jnp.where(often, gate, 1.0)) * jnp.expm1(base))
    return jnp.where(often, by_rest, jnp.where(ratio, by_ratio, by_sum))


class ZeroInflatedPoisson(dist.ZeroInflatedPoisson):
    """A ZeroInflatedProbs."""

    log_prob = ZeroInflatedProbs.log_prob


class HurdleProbs(discrete.HurdleProbs):
    """p(0) = gate; p(x) = (1 - gate) base(x) / (1 - base(0)), where 1 - base(0) of a Poisson may be small."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        base = self.base_dist
        while isinstance(base, dist.ExpandedDistribution):
            base = base.base_dist
        if not isinstance(base, dist.Poisson):
            return discrete.HurdleProbs.log_prob(self, value)
        rate, value = _floating(base.rate), _floating(value)
        x = jnp.where(value == 0, 1.0, value)
        few, many = jnp.where(rate < 20, rate, 1.0), jnp.where(rate < 20, 20.0, rate)
        ratio = jnp.where(rate < 20, 0.5 * few - _log_sinhc(0.5 * few), jnp.log(many) - jnp.log1p(-jnp.exp(-many)))
        log_prob = _special.log_poisson(x - 1, rate, jnp.log(rate)) - jnp.log(x) + ratio
        return jnp.where(value == 0, self._log_gate(), self._log_one_minus_gate() + log_prob)

    def _log_gate(self) -> Any:
        return times_log(jnp.ones_like(jnp.asarray(self.gate)), jnp.asarray(self.gate))

    def _log_one_minus_gate(self) -> Any:
        return times_log1m(jnp.ones_like(jnp.asarray(self.gate)), jnp.asarray(self.gate))


class HurdlePoisson(dist.HurdlePoisson):
    """A HurdleProbs."""

    log_prob = HurdleProbs.log_prob
    _log_gate, _log_one_minus_gate = HurdleProbs._log_gate, HurdleProbs._log_one_minus_gate


class HurdleGamma(dist.HurdleGamma):
    """With the gate of a HurdleProbs."""

    _log_gate, _log_one_minus_gate = HurdleProbs._log_gate, HurdleProbs._log_one_minus_gate


class HurdleLogNormal(dist.HurdleLogNormal):
    """With the gate of a HurdleProbs."""

    _log_gate, _log_one_minus_gate = HurdleProbs._log_gate, HurdleProbs._log_one_minus_gate


class HurdleLogits(dist.HurdleLogits):
    """A HurdleProbs."""

    log_prob = HurdleProbs.log_prob


def _floating(x: Any) -> Any:
    return jnp.asarray(x, jnp.result_type(float))


# --- truncated, and heavy tails ----------------------------------------------------------------------------------


def _tail(cdf: Any, loc: Any, bound: Any, sign: Any) -> Any:
    """The distribution function at a bound that may be infinite, reflected at the location where `sign` is -1."""
    finite = jnp.isfinite(bound)
    at = jnp.where(finite, bound, loc)
    return jnp.where(finite, cdf(loc - sign * (loc - at)), jnp.where(sign * bound > 0, 1.0, 0.0))


def _base(d: Any) -> Any:
    return d.base_dist


def _standard(base: Any, bound: Any) -> Any:
    return (jnp.asarray(bound) - base.loc) / base.scale


class TwoSidedTruncatedDistribution(dist.TwoSidedTruncatedDistribution):
    """Bounds may be infinite. The mass of a Normal between them is computed from the nearer tail."""

    def _side(self) -> Any:
        return jnp.where(_base(self).loc >= self.low, 1.0, -1.0)

    @property
    def _tail_prob_at_low(self) -> Any:
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.low), self._side())

    @property
    def _tail_prob_at_high(self) -> Any:
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.high), self._side())

    @property
    def _log_diff_tail_probs(self) -> Any:
        base = _base(self)
        if isinstance(base, dist.Normal):
            return log_normal_mass(_standard(base, self.low), _standard(base, self.high))
        if isinstance(base, dist.Cauchy):
            return _log_cauchy_mass(_standard(base, self.low), _standard(base, self.high))
        return jnp.log(self._side() * (self._tail_prob_at_high - self._tail_prob_at_low))


class LeftTruncatedDistribution(dist.LeftTruncatedDistribution):
    """The bound may be infinite."""

    @property
    def _tail_prob_at_low(self) -> Any:
        sign = jnp.where(_base(self).loc >= self.low, 1.0, -1.0)
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.low), sign)

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        if isinstance(_base(self), dist.Cauchy):
            bound = _standard(_base(self), self.low)
            return _base(self).log_prob(value) - jnp.log(jnp.atan2(1.0, bound) / jnp.pi)
        if not isinstance(_base(self), dist.Normal):
            return super().log_prob(value)
        low = _standard(_base(self), self.low)
        return _base(self).log_prob(value) - log_normal_mass(low, jnp.full_like(low, jnp.inf))


class RightTruncatedDistribution(dist.RightTruncatedDistribution):
    """The bound may be infinite."""

    @property
    def _cdf_at_high(self) -> Any:
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.high), 1.0)

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        if isinstance(_base(self), dist.Cauchy):
            bound = _standard(_base(self), self.high)
            return _base(self).log_prob(value) - jnp.log(jnp.atan2(1.0, -bound) / jnp.pi)
        if not isinstance(_base(self), dist.Normal):
            return super().log_prob(value)
        high = _standard(_base(self), self.high)
        return _base(self).log_prob(value) - log_normal_mass(jnp.full_like(high, -jnp.inf), high)


def _log_cauchy_mass(low: Any, high: Any) -> Any:
    """Log of the mass between two bounds, which may be infinite: of the angle between (1, low) and (1, high)."""
    left, right = jnp.isfinite(low), jnp.isfinite(high)
    a, b = jnp.where(left, low, 0.0), jnp.where(right, high, 0.0)
    both = left & right
    y = jnp.where(both, jnp.where(both, b - a, 1.0), 1.0)
    x = jnp.where(both, 1 + a * b, jnp.where(left, a, jnp.where(right, -b, -1.0)))
    return jnp.where(left | right, jnp.log(jnp.atan2(y, x) / jnp.pi), 0.0)


def log_normal_mass(low: Any, high: Any) -> Any:
    """Log (Φ(high) - Φ(low)), from the tail in which the interval lies; bounds may be infinite."""
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    log_high, log_low = log_ndtr_of_bound(high), log_ndtr_of_bound(low)
    gap = jnp.where(jnp.isfinite(low), log_low - log_high, -1.0)
    return log_high + jnp.where(jnp.isfinite(low), log1mexp(gap), 0.0)


def _log1p_square(z: Any, df: Any) -> Any:
    """Log (1 + z² / df), of a z whose square may overflow."""
    far = jnp.abs(z) > 1e6
    big = jnp.where(far, jnp.abs(z), 1.0)
    far_log = 2.0 * jnp.log(big) - jnp.log(df) + jnp.log1p(df / big / big)
    return jnp.where(far, far_log, jnp.log1p(jnp.where(far, 0.0, z) ** 2 / df))


class StudentT(dist.StudentT):
    """log p(x) of z = (x - loc) / scale, by log (1 + z² / ν) of a z whose square may overflow."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        df, scale = jnp.asarray(self.df), jnp.asarray(self.scale)
        tail = 0.5 * (df + 1.0) * _log1p_square((value - self.loc) / scale, df)
        normalizer = jnp.log(scale) + 0.5 * jnp.log(df) + 0.5 * jnp.log(jnp.pi)
        return _special.log_gamma_ratio(0.5 * df, 0.5) - normalizer - tail


class MultivariateStudentT(dist.MultivariateStudentT):
    """log p(x), with a ratio of gamma functions that holds for large ν."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        df, n = jnp.asarray(self.df), self.event_shape[0]
        z = _whiten(self.scale_tril, value - self.loc)
        log_det = jnp.sum(jnp.log(jnp.diagonal(jnp.asarray(self.scale_tril), axis1=-2, axis2=-1)), axis=-1)
        normalizer = 0.5 * n * (jnp.log(df) + jnp.log(jnp.pi)) + log_det - _special.log_gamma_ratio(0.5 * df, 0.5 * n)
        return -0.5 * (df + n) * jnp.log1p(jnp.sum(z * z, axis=-1) / df) - normalizer


def _whiten(scale_tril: Any, x: Any) -> Any:
    """L⁻¹ x, with batches on both."""
    shape = jnp.broadcast_shapes(jnp.shape(scale_tril)[:-2], jnp.shape(x)[:-1])
    scale_tril = jnp.broadcast_to(scale_tril, (*shape, *jnp.shape(scale_tril)[-2:]))
    x = jnp.broadcast_to(x, (*shape, jnp.shape(x)[-1]))
    return solve_triangular(scale_tril, x[..., None], lower=True)[..., 0]


class Cauchy(dist.Cauchy):
    """log p(x) of a z = (x - loc) / scale whose square may overflow."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        scale = jnp.asarray(self.scale)
        return -jnp.log(jnp.pi) - jnp.log(scale) - _log1p_square((value - self.loc) / scale, 1.0)


class VonMises(dist.VonMises):
    """log p(x) = -2 κ sin² ((x - loc) / 2) - log (2π I0(κ) exp(-κ))."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        k = jnp.asarray(self.concentration)
        return -2 * k * jnp.sin(0.5 * (value - self.loc)) ** 2 - jnp.log(2 * jnp.pi) - jnp.log(i0e(k))


class Kumaraswamy(dist.Kumaraswamy):
    """log p(x) = log a b + (a - 1) log x + (b - 1) log (1 - x^a), with 1 - x^a not clipped."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        a, b = jnp.asarray(self.concentration1), jnp.asarray(self.concentration0)
        log_x = jnp.log(value)
        return jnp.log(a) + jnp.log(b) + (a - 1) * log_x + (b - 1) * log1mexp(a * log_x)


class DoublyTruncatedPowerLaw(dist.DoublyTruncatedPowerLaw):
    """log p(x) = α log x - log ∫ t^α dt, the integral by sinh(w) / w of w = (α + 1) log (high / low) / 2.

    NumPyro's derivatives in the bounds are those of the density, not of its logarithm.
    """

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        alpha, low, high = (jnp.asarray(t) for t in (self.alpha, self.low, self.high))
        low, high = jnp.log(low), jnp.log(high)
        gap = high - low
        mass = jnp.log(gap) + 0.5 * (alpha + 1) * (high + low) + _log_sinhc(0.5 * (alpha + 1) * gap)
        return alpha * jnp.log(value) - mass


def _log_sinhc(w: Any) -> Any:
    """Log (sinh(w) / w), even and smooth."""
    near = jnp.abs(w) < 0.3
    y = jnp.where(near, w, 0.0) ** 2
    series = jnp.log1p(y / 6 * (1 + y / 20 * (1 + y / 42 * (1 + y / 72 * (1 + y / 110 * (1 + y / 156))))))
    v = jnp.where(near, 1.0, jnp.abs(w))
    return jnp.where(near, series, v + jnp.log(-jnp.expm1(-2 * v)) - jnp.log(2 * v))


class TruncatedPolyaGamma(dist.TruncatedPolyaGamma):
    """The density of a Polya-Gamma(1, 0), by whichever of its two series converges at once."""

    def log_prob(self, value: Any) -> Any:
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

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """f[...], the log density."""
        c, x = jnp.broadcast_arrays(jnp.asarray(self.concentration), value)
        n = c.shape[-1] - 1
        if n not in (1, 2):
            return super().log_prob(value, intermediates)
        across = jnp.cross(c, x) if n == 2 else c[..., :1] * x[..., 1:] - c[..., 1:] * x[..., :1]
        ray = _special.log_ray(jnp.sum(c * x, -1), jnp.sum(c * c, -1), jnp.sum(across**2, -1), n)
        return ray - 0.5 * n * jnp.log(2 * jnp.pi)


# --- counts ---------------------------------------------------------------------------------------------------


class Poisson(dist.Poisson):
    """log p(x) = x log r - r - log x!, also of large counts, and of a rate of 0."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        rate = _floating(self.rate)
        return _special.log_poisson(_floating(value), rate, times_log(jnp.ones_like(rate), rate))


class GammaPoisson(dist.GammaPoisson):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) - a log (1 + 1 / r) - x log (1 + r)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        a, r = _floating(self.concentration), _floating(self.rate)
        log_p = -jax.nn.softplus(-jnp.log(r))
        return _special.log_negative_binomial(_floating(value), a, r / (1 + r), 1 / (1 + r), log_p, -jnp.log1p(r))


class NegativeBinomial2(dist.NegativeBinomial2):
    """A GammaPoisson."""

    log_prob = GammaPoisson.log_prob


class NegativeBinomialProbs(dist.NegativeBinomialProbs):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) + a log (1 - p) + x log p."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        a, p = _floating(self.total_count), _floating(self.probs)
        one = jnp.ones_like(p)
        logs = times_log1m(one, p), times_log(one, p)
        return _special.log_negative_binomial(_floating(value), a, 1 - p, p, *logs)


class NegativeBinomialLogits(dist.NegativeBinomialLogits):
    """log p(x) = log (Γ(a + x) / Γ(a) / x!) - a softplus(φ) - x softplus(-φ)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        a, logits = _floating(self.total_count), _floating(self.logits)
        probs, logs = jax.nn.sigmoid, jax.nn.softplus
        return _special.log_negative_binomial(
            _floating(value), a, probs(-logits), probs(logits), -logs(logits), -logs(-logits)
        )


def _pair(a: Any, b: Any) -> Any:
    return jnp.stack(jnp.broadcast_arrays(a, b), axis=-1)


class BetaBinomial(dist.BetaBinomial):
    """log p(x) = log (n choose x) + log B(a + x, b + n - x) - log B(a, b)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        a, b = _floating(self.concentration1), _floating(self.concentration0)
        x = _floating(value)
        return _special.log_polya(_pair(x, _floating(self.total_count) - x), _pair(a, b))


class BetaNegativeBinomial(dist.BetaNegativeBinomial):
    """log p(x) = log (Γ(n + x) / Γ(n) / x!) + log B(a + x, b + n) - log B(a, b)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        x, n = _floating(value), _floating(self.n)
        a, b = _floating(self.concentration1), _floating(self.concentration0)
        return jnp.log(n) - jnp.log(x + n) + _special.log_polya(_pair(x, n), _pair(a, b))


class DirichletMultinomial(dist.DirichletMultinomial):
    """log p(x) = log n! + log B(a + x) - log B(a) - Σ_i log x_i!."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        return _special.log_polya(_floating(value), _floating(self.concentration))


class OrderedLogistic(dist.OrderedLogistic):
    """p(k) = σ(c_k - φ) - σ(c_{k-1} - φ) = σ(c_k - φ) σ(φ - c_{k-1}) (1 - exp(c_{k-1} - c_k))."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        c = jnp.asarray(self.cutpoints)
        t = jnp.asarray(self.predictor)[..., None]
        up, gaps = -jax.nn.softplus(t - c), log1mexp(-jnp.diff(c, axis=-1))
        down = -jax.nn.softplus(c - t)
        middle = up[..., 1:] + down[..., :-1] + gaps
        table = jnp.concatenate([up[..., :1], middle, down[..., -1:]], axis=-1)
        value = jnp.asarray(value)
        table = jnp.broadcast_to(table, (*jnp.broadcast_shapes(value.shape, table.shape[:-1]), table.shape[-1]))
        index = jnp.broadcast_to(value, table.shape[:-1]).astype(int)[..., None]
        return jnp.take_along_axis(table, index, axis=-1)[..., 0]


_STABLE = {
    cls.__base__: cls
    for cls in (
        BernoulliLogits, BinomialLogits, BernoulliProbs, BinomialProbs, GeometricProbs, MultinomialProbs,
        CategoricalProbs, ZeroInflatedProbs, TwoSidedTruncatedDistribution, LeftTruncatedDistribution,
        RightTruncatedDistribution, StudentT, MultivariateStudentT, Cauchy, VonMises, Kumaraswamy,
        DoublyTruncatedPowerLaw, TruncatedPolyaGamma, Poisson, GammaPoisson, NegativeBinomial2, NegativeBinomialProbs,
        NegativeBinomialLogits, HurdleProbs, HurdlePoisson, HurdleLogits, BetaBinomial, BetaNegativeBinomial,
        DirichletMultinomial, OrderedLogistic, Gamma, Chi2, InverseGamma, Beta, BetaProportion, Dirichlet,
        ProjectedNormal, LeftCensored, RightCensored, ZeroInflatedPoisson, HurdleGamma,
        HurdleLogNormal,
    )
}  # fmt: skip


def stabilize(d: Any) -> Any:
    """The same distribution, with the densities of this module in it and in its parts."""
    if not isinstance(d, dist.Distribution):
        return d
    changes = {}
    for name, part in vars(d).items():
        if isinstance(part, dist.Distribution):
            new = stabilize(part)
        elif isinstance(part, (list, tuple)) and any(isinstance(x, (dist.Distribution, Transform)) for x in part):
            new = type(part)([with_functions(x) if isinstance(x, Transform) else stabilize(x) for x in part])
            new = part if all(a is b for a, b in zip(new, part, strict=True)) else new
        else:
            continue
        if new is not part:
            changes[name] = new
    cls = _STABLE.get(type(d))
    if cls is None and not changes:
        return d
    new = copy.copy(d)
    for name, part in changes.items():
        setattr(new, name, part)
    if cls is not None:
        new.__class__ = cls
    return new
