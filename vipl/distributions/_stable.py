"""Families of NumPyro whose densities, derivatives or draws are wrong at single points or extreme parameters, mended.

- `BernoulliLogits` and `BinomialLogits` compute max(x, 0) + log1p(exp(-|x|)), whose derivative at the logit x = 0
  (where most training begins) JAX takes to be 0 or 1 instead of 1/2. Here it is softplus(x).
- Families by `probs` clip a probability p to [tiny, 1 - eps], so that log(1 - p) has the slope 0 beyond that. Here it
  is log1p(-p) to the last digit that p has, and -inf (with a derivative of 0) where p says that a value is impossible.
- `CategoricalProbs` draws its first value, also an impossible one, where the uniform number is 0.
- A truncated family has NaN as its derivative where a bound is infinite.
- `StudentT` squares a number that may overflow.
- A zero-inflated family takes the logarithm of a sum of probabilities that may underflow.
- `OrderedLogistic` subtracts probabilities that round to the same number.
- `DoublyTruncatedPowerLaw` has other derivatives in its bounds than its density has.
- JAX's `betaln` is exact to 1e-8, also in double precision, and its `log_ndtr` to 4e-9 in the tail.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln, gammaln, log_ndtr
from numpyro.distributions import discrete
from numpyro.distributions.transforms import Transform

from vipl.distributions._flows import with_functions


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
        value, n, p = _floating(value), jnp.asarray(self.total_count), jnp.asarray(self.probs)
        choose = gammaln(n + 1.0) - gammaln(value + 1.0) - gammaln(n - value + 1.0)
        return choose + times_log(value, p) + times_log1m(n - value, p)


class GeometricProbs(dist.GeometricProbs):
    """log p(x) = log p + x log (1 - p)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        value, p = _floating(value), jnp.asarray(self.probs)
        return times_log1m(value, p) + times_log(jnp.ones_like(p), p)


class MultinomialProbs(dist.MultinomialProbs):
    """log p(x) = log n! + Σ_i (x_i log p_i - log x_i!)."""

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
        gate = jnp.asarray(self.gate)
        one = jnp.ones_like(gate)
        log_prob = times_log1m(one, gate) + self.base_dist.log_prob(value)
        return jnp.where(value == 0, jnp.logaddexp(times_log(one, gate), log_prob), log_prob)


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
        return jnp.log(self._side() * (self._tail_prob_at_high - self._tail_prob_at_low))


class LeftTruncatedDistribution(dist.LeftTruncatedDistribution):
    """The bound may be infinite."""

    @property
    def _tail_prob_at_low(self) -> Any:
        sign = jnp.where(_base(self).loc >= self.low, 1.0, -1.0)
        return _tail(_base(self).cdf, _base(self).loc, jnp.asarray(self.low), sign)

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
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
        if not isinstance(_base(self), dist.Normal):
            return super().log_prob(value)
        high = _standard(_base(self), self.high)
        return _base(self).log_prob(value) - log_normal_mass(jnp.full_like(high, -jnp.inf), high)


def log_normal_mass(low: Any, high: Any) -> Any:
    """Log (Φ(high) - Φ(low)), from the tail in which the interval lies; bounds may be infinite."""
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    log_high, log_low = _log_ndtr(high), _log_ndtr(low)
    gap = jnp.where(jnp.isfinite(low), log_low - log_high, -1.0)
    return log_high + jnp.where(jnp.isfinite(low), log1mexp(gap), 0.0)


def _log_ndtr(x: Any) -> Any:
    """Log Φ(x), also at infinite x; in the tail  log φ(x) - log |x| + log Σ_n (-1)^n (2 n - 1)!! / x^(2 n)."""
    x = jnp.asarray(x)
    start = -20.0 if x.dtype == jnp.float64 else -10.0
    tail = jnp.isfinite(x) & (x < start)
    far = jnp.where(tail, x, 2 * start)
    series, term = jnp.ones_like(far), jnp.ones_like(far)
    for n in range(1, 9):
        term = -term * (2 * n - 1) / far**2
        series = series + term
    far = -0.5 * far**2 - jnp.log(-far) - 0.5 * jnp.log(2 * jnp.pi) + jnp.log(series)
    near = jnp.where(jnp.isfinite(x) & ~tail, x, 0.0)
    return jnp.where(jnp.isfinite(x), jnp.where(tail, far, log_ndtr(near)), jnp.where(x > 0, 0.0, -jnp.inf))


def log1mexp(x: Any) -> Any:
    """Log (1 - exp(x)) for x < 0."""
    near = x > -0.6931472
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -0.5))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


class StudentT(dist.StudentT):
    """log p(x) of z = (x - loc) / scale, by log (1 + z² / ν) of a z whose square may overflow."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        df, scale = jnp.asarray(self.df), jnp.asarray(self.scale)
        z = (value - self.loc) / scale
        normalizer = jnp.log(scale) + 0.5 * jnp.log(df) + 0.5 * jnp.log(jnp.pi)
        normalizer = normalizer + gammaln(0.5 * df) - gammaln(0.5 * (df + 1.0))
        far = jnp.abs(z) > 1e6
        near_log = jnp.log1p(jnp.where(far, 0.0, z) ** 2 / df)
        big = jnp.where(far, jnp.abs(z), 1.0)
        far_log = 2.0 * jnp.log(big) - jnp.log(df) + jnp.log1p(df / big / big)
        return -0.5 * (df + 1.0) * jnp.where(far, far_log, near_log) - normalizer


class DoublyTruncatedPowerLaw(dist.DoublyTruncatedPowerLaw):
    """log p(x) = α log x - log ∫ t^α dt from low to high."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log density."""
        low, power = jnp.asarray(self.low), 1.0 + jnp.asarray(self.alpha)
        length = jnp.log(jnp.asarray(self.high) / low)
        log_mass = power * jnp.log(low) + jnp.log(length) + _log_mean_exp(power * length)
        return self.alpha * jnp.log(value) - log_mass


def _log_mean_exp(u: Any) -> Any:
    """Log ((exp(u) - 1) / u), the mean of exp on [0, u]."""
    small = jnp.abs(u) < 1e-2
    v = jnp.where(small, 1.0, u)
    large = jnp.maximum(v, 0.0) + jnp.log(-jnp.expm1(-jnp.abs(v)) / jnp.abs(v))
    near = jnp.where(small, u, 0.0)
    return jnp.where(small, near / 2 + near**2 / 24 - near**4 / 2880 + near**6 / 181440, large)


# --- counts --------------------------------------------------------------------------------------------------


def log_factorial(k: Any) -> Any:
    """Log k!, exactly 0 at 0 and 1."""
    return jnp.where(k < 2, 0.0, gammaln(jnp.where(k < 2, 1.0, k) + 1.0))


def log_beta(a: Any, b: Any) -> Any:
    """Log B(a, b)."""
    if jnp.result_type(a, b) == jnp.float64:
        return gammaln(a) + gammaln(b) - gammaln(a + b)
    return betaln(a, b)


class Poisson(dist.Poisson):
    """log p(k) = k log λ - λ - log k!."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        k, rate = _floating(value), jnp.asarray(self.rate)
        return times_log(k, rate) - rate - log_factorial(k)


class _GammaPoisson:
    """log p(k) = -log B(α, k + 1) - log (α + k) - α log (1 + 1 / λ) - k log (1 + λ)."""

    concentration: Any
    rate: Any

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        k, a, rate = _floating(value), jnp.asarray(self.concentration), jnp.asarray(self.rate)
        choose = -log_beta(a, k + 1.0) - jnp.log(a + k)
        return choose - a * jnp.log1p(1.0 / rate) - jnp.where(k == 0, 0.0, k * jnp.log1p(rate))


class GammaPoisson(_GammaPoisson, dist.GammaPoisson):
    """With the density above."""


class NegativeBinomial2(_GammaPoisson, dist.NegativeBinomial2):
    """With the density above."""


class NegativeBinomialProbs(_GammaPoisson, dist.NegativeBinomialProbs):
    """With the density above."""


class BetaBinomial(dist.BetaBinomial):
    """log p(k) = log (n choose k) + log B(k + a, n - k + b) - log B(a, b)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        k, n = _floating(value), _floating(self.total_count)
        a, b = jnp.asarray(self.concentration1), jnp.asarray(self.concentration0)
        choose = -jnp.log1p(n) - log_beta(n - k + 1.0, k + 1.0)
        return choose + log_beta(k + a, n - k + b) - log_beta(a, b)


class BetaNegativeBinomial(dist.BetaNegativeBinomial):
    """log p(k) = log (n + k - 1 choose k) + log B(a + k, b + n) - log B(a, b)."""

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        k, n = _floating(value), jnp.asarray(self.n)
        a, b = jnp.asarray(self.concentration1), jnp.asarray(self.concentration0)
        choose = -log_beta(n, k + 1.0) - jnp.log(n + k)
        return choose + log_beta(a + k, b + n) - log_beta(a, b)


class OrderedLogistic(dist.OrderedLogistic):
    """p(k) = σ(c_k - η) - σ(c_(k-1) - η) = σ(c_k - η) σ(η - c_(k-1)) (1 - exp(c_(k-1) - c_k))."""

    sample = CategoricalProbs.sample

    def log_prob(self, value: Any) -> Any:
        """f[...], the log probability."""
        cuts = jnp.asarray(self.cutpoints) - jnp.expand_dims(jnp.asarray(self.predictor), -1)
        value = jnp.asarray(value)
        cuts = jnp.broadcast_to(cuts, (*jnp.broadcast_shapes(cuts.shape[:-1], value.shape), cuts.shape[-1]))
        number, last = jnp.broadcast_to(value, cuts.shape[:-1]).astype(int), cuts.shape[-1]

        def cut(i: Any) -> Any:
            return jnp.take_along_axis(cuts, jnp.clip(i, 0, last - 1)[..., None], axis=-1)[..., 0]

        above, below = cut(number), cut(number - 1)
        first, end = number == 0, number == last
        gap = jnp.where(first | end, -1.0, below - above)
        log_prob = jnp.where(end, 0.0, jax.nn.log_sigmoid(above)) + jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
        log_prob = log_prob + jnp.where(first | end, 0.0, log1mexp(gap))
        return jnp.where((number < 0) | (number > last), -jnp.inf, log_prob)


_STABLE = {
    cls.__bases__[-1]: cls
    for cls in (
        BernoulliLogits, BinomialLogits, BernoulliProbs, BinomialProbs, GeometricProbs, MultinomialProbs,
        CategoricalProbs, ZeroInflatedProbs, TwoSidedTruncatedDistribution, LeftTruncatedDistribution,
        RightTruncatedDistribution, StudentT, DoublyTruncatedPowerLaw, Poisson, GammaPoisson, NegativeBinomial2,
        NegativeBinomialProbs, BetaBinomial, BetaNegativeBinomial, OrderedLogistic,
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
