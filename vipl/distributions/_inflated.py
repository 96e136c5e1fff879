"""Zero-inflated and hurdle families.

- A zero-inflated family takes the logarithm of a sum of probabilities that may underflow; a hurdle of a Poisson that of
  1 - exp(-r) of a small r.
- Both have NaN as their derivative at a gate of exactly 0 or 1.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import discrete

from vipl._types import Array, ArrayLike, Float, Num
from vipl.distributions import _special_functions as special
from vipl.distributions._special_functions import floating, inexact, times_log, times_log1m


class ZeroInflatedProbs(discrete.ZeroInflatedProbs):
    """p(x) = gate [x = 0] + (1 - gate) base(x)."""

    def log_prob(self, value: Num[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        gate, base = inexact(self.gate), self.base_dist.log_prob(value)
        return jnp.where(value == 0, _log_of_zero(gate, base), times_log1m(jnp.ones_like(gate), gate) + base)


def _log_of_zero(gate: Array, base: ArrayLike) -> Array:
    """Log (g + (1 - g) exp(base)) for base <= 0, with its derivatives at g = 0 and g = 1, too.

    Large g: log (1 - (1 - g) (1 - exp(base))). Else base + log (1 + g (exp(-base) - 1)), unless exp(-base) is large.
    """
    gate, base = jnp.broadcast_arrays(gate, base)
    often, ratio = gate >= 0.5, (gate == 0) | (base > -30)
    g = jnp.where(often, 0.25, gate)
    largest = 0.99 * jnp.log(jnp.finfo(base.dtype).max)
    odds = jnp.expm1(jnp.minimum(jnp.where(ratio, -base, 1.0), largest))
    by_ratio = base + jnp.log1p(jnp.where(ratio, g, 0.0) * odds)
    by_sum = jnp.logaddexp(jnp.log(jnp.where(ratio, 0.25, g)), jnp.log1p(-g) + base)
    by_rest = jnp.log1p((1 - jnp.where(often, gate, 1.0)) * jnp.expm1(base))
    return jnp.where(often, by_rest, jnp.where(ratio, by_ratio, by_sum))


class ZeroInflatedPoisson(dist.ZeroInflatedPoisson):
    """A ZeroInflatedProbs."""

    log_prob = ZeroInflatedProbs.log_prob  # type: ignore[assignment]


class HurdleProbs(discrete.HurdleProbs):
    """p(0) = gate; p(x) = (1 - gate) base(x) / (1 - base(0)), where 1 - base(0) of a Poisson may be small."""

    def log_prob(self, value: Num[Array, "*batch"]) -> Float[Array, "*batch"]:
        """f[...], the log probability."""
        base = self.base_dist
        while isinstance(base, dist.ExpandedDistribution):
            base = base.base_dist
        if not isinstance(base, dist.Poisson):
            return discrete.HurdleProbs.log_prob(self, value)
        rate, value = floating(base.rate), floating(value)
        x = jnp.where(value == 0, 1.0, value)
        few, many = jnp.where(rate < 20, rate, 1.0), jnp.where(rate < 20, 20.0, rate)
        ratio = jnp.where(
            rate < 20, 0.5 * few - special.log_sinhc(0.5 * few), jnp.log(many) - jnp.log1p(-jnp.exp(-many))
        )
        log_prob = special.log_poisson(x - 1, rate, jnp.log(rate)) - jnp.log(x) + ratio
        return jnp.where(value == 0, self._log_gate(), self._log_one_minus_gate() + log_prob)

    def _log_gate(self) -> Array:
        return times_log(jnp.ones_like(inexact(self.gate)), inexact(self.gate))

    def _log_one_minus_gate(self) -> Array:
        return times_log1m(jnp.ones_like(inexact(self.gate)), inexact(self.gate))


class HurdlePoisson(dist.HurdlePoisson):
    """A HurdleProbs."""

    log_prob = HurdleProbs.log_prob  # type: ignore[assignment]
    _log_gate, _log_one_minus_gate = HurdleProbs._log_gate, HurdleProbs._log_one_minus_gate


class HurdleGamma(dist.HurdleGamma):
    """With the gate of a HurdleProbs."""

    _log_gate, _log_one_minus_gate = HurdleProbs._log_gate, HurdleProbs._log_one_minus_gate


class HurdleLogNormal(dist.HurdleLogNormal):
    """With the gate of a HurdleProbs."""

    _log_gate, _log_one_minus_gate = HurdleProbs._log_gate, HurdleProbs._log_one_minus_gate


class HurdleLogits(dist.HurdleLogits):
    """A HurdleProbs."""

    log_prob = HurdleProbs.log_prob  # type: ignore[assignment]
