"""Weighted draws, and the sentence that tells how far the guide they come from can be trusted.

With w_i = p(z_i, data) / q(z_i) and z_i ~ q, q is close to the posterior where nothing tells the two apart:

    k-hat, ESS          the weights have no heavy tail, and few draws do not outweigh the rest
    log Z - ELBO        KL(q || p), with log Z from the weights
    sup_x |F_p - F_q|   the distance of Kolmogorov and Smirnov of each latent number, F_p by the weights

The first alone would call a guide good that is ten times too wide: its weights are bounded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from vipl._checks import whole_number
from vipl._jax import Tracer
from vipl._settings import with_own_settings
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.errors import ProgramError, shortened
from vipl.gen._choices import Choices, flatten, nest
from vipl.ir.keys import as_key
from vipl.posterior._psis import Smoothed, smooth

_CLOSE = 0.5
"""KL(q || p), in nats, up to which a guide is called close."""
_DISTANCE = 0.05
"""The distance of distribution functions of one latent number up to which a guide is called close."""
_NOISE = 0.1
"""Three standard errors of that distance, above which it tells nothing, and no guide is called close."""
_COLUMNS = 4096
"""Latent numbers that are looked at together."""


_LIGHT = (
    "their standard deviations may still be too small, and means a few tenths of one off. Where that matters, try "
    "vipl.guides.Flow or Mixture."
)


@dataclass(frozen=True)
class Improved:
    """Weighted draws; made by `Posterior.improve`.

    Attributes:
      choices: by address, with a leading axis of n.
      weights: the smoothed weights, with `k_hat`, `ess` and `limit`.
      bound: f[], the mean of log p(z, data) - log q(z): the evidence lower bound.
      spread: f[], the standard deviation of that.
      impossible: how many draws have density zero in the model.
    """

    choices: Choices
    weights: Smoothed
    bound: Float[Array, ""]
    spread: Float[Array, ""]
    impossible: int = 0

    @with_own_settings
    def sample(self, key: PRNGKeyArray, num_samples: SupportsIndex = 1000) -> Choices:
        """Draws with replacement by the weights."""
        num_samples = whole_number(num_samples, "num_samples", "Improved")
        log_weights = jnp.asarray(self.weights.log_weights)
        index = jax.random.categorical(as_key(key), log_weights, shape=(num_samples,))
        return nest({a: x[index] for a, x in flatten(self.choices, "draws").items()})

    @with_own_settings
    def expectation(self, fn: Callable[[Choices], PyTree]) -> PyTree:
        """Σ_i w_i fn(z_i); of a condition its probability, of integers their mean."""
        check_function(fn, "expectation of weighted draws")
        weights = np.exp(self.weights.log_weights)
        return jax.tree.map(functools.partial(mean_over_draws, weights=weights), values_of(fn, self.choices))

    @property
    def divergence(self) -> float:
        """KL(q || posterior) = log Z - E_q[log p(z, data) - log q(z)] in nats, with log Z from the weights.

        It is too small where log Z is, as where k-hat is above its limit; infinite where draws are impossible.
        """
        return self.weights.log_mean - float(self.bound)

    def verdict(self) -> str:
        """Whether the guide is close to the posterior, and what to try where it is not."""
        w, n = self.weights, len(self.weights.log_weights)
        error = float(self.spread) / math.sqrt(n)
        bound = "-inf" if self.impossible else f"{float(self.bound):.3f} +- {error:.3f}"
        k_hat = "none" if w.k_hat == -math.inf else f"{w.k_hat:.2f}"
        said = f"evidence lower bound {bound}; k-hat {k_hat}, ESS {w.ess:.0f} of {n}. "
        if self.impossible:
            said += f"{self.impossible} draws are impossible in the model: its density there is zero. "
        if w.k_hat <= w.limit:
            return said + self._of_good_weights()
        if w.ess > 0.99 * n and not self.impossible and self._is_near():
            return said + (
                "Fine but for far tails: the weights are nearly equal, and the few that are not lie far out, where the "
                "guide's tails are too light. What needs these tails needs vipl.guides.Flow or Mixture."
            )
        if w.ess > n / 2 and not self.impossible:
            return said + (
                "Usable but for tails: most weights are nearly equal, and a few are large, where the guide's tails are "
                "too light. Medians and central halves can be trusted; deviations and wide intervals may be too small: "
                "for these try vipl.guides.Flow or Mixture."
            )
        return said + (
            "NOT reliable: the posterior differs from the guide. Try vipl.guides.Flow or Mixture; write hierarchical "
            "effects the other way: non-centred (z ~ N(0, 1), effect = mean + sd z) where a group has few data, "
            "centred (effect ~ N(mean, sd)) where it has many; or run NUTS from posterior.sample."
        )

    def _of_good_weights(self) -> str:
        """The verdict where weighted draws can be trusted: on the guide's own."""
        w, n = self.weights, len(self.weights.log_weights)
        if self.impossible:
            return (
                "Usable by weights alone: take draws from improve(key), or a guide that keeps to what is possible: a "
                "program with the model's supports, or the model's discrete choices summed out by vipl.marginal."
            )
        is_light = w.k_hat >= 0.5 and w.ess <= n / 2
        if self.divergence > _CLOSE:
            return (
                f"Usable by weights alone: the guide's own draws are not the posterior's (KL {self.divergence:.2f} "
                "nats). Take draws from improve(key); fit for more steps, or a more flexible guide."
            ) + (f" Weights mend light tails in part: {_LIGHT}" if is_light else "")
        if w.k_hat < 0.5 and w.ess > n / 10 and self._is_near():
            return "Fine: the guide is close to the posterior."
        if is_light:
            return (
                "Usable with care: the guide's tails are too light, and weights mend that in part. Take draws from "
                f"improve(key); {_LIGHT}"
            )
        return "Usable: take draws from improve(key), or a more flexible guide, for tails and small effects."

    def _is_near(self) -> bool:
        """Whether no latent number is seen to be distributed otherwise by the weights."""
        w, n = self.weights, len(self.weights.log_weights)
        noise = 1.5 * math.sqrt(max(1 / w.ess - 1 / n, 0.0))  # a weighted probability has at most a third as error
        return noise <= _NOISE and self._distance() <= _DISTANCE + noise

    def _distance(self) -> float:
        """The largest sup_x |F_p(x) - F_q(x)| over latent numbers."""
        weights = np.exp(self.weights.log_weights)
        found = [0.0]
        for x in flatten(self.choices, "draws").values():
            columns = np.asarray(x).reshape(weights.size, -1)
            for k in range(0, columns.shape[1], _COLUMNS):
                found.append(_apart(columns[:, k : k + _COLUMNS], weights))
        return max(found)


def improved(choices: Choices, log_weights: np.ndarray) -> Improved:
    """Draws and the logarithms of their weights, with the largest smoothed."""
    impossible = int(np.isneginf(log_weights).sum())
    smoothed = smooth(log_weights)  # raises where they are no numbers
    spread = np.asarray(np.inf, log_weights.dtype) if impossible else log_weights.std()
    return Improved(choices, smoothed, jax.device_put(log_weights.mean()), jax.device_put(spread), impossible)


def _apart(columns: np.ndarray, weights: np.ndarray) -> float:
    """The largest distance between the distributions of columns with weights and without; ties count as one value."""
    order = np.argsort(columns, axis=0)
    ordered = np.take_along_axis(columns, order, axis=0)
    gap = np.abs(np.cumsum(weights[order] - 1 / weights.size, axis=0))
    last = np.concatenate([ordered[1:] != ordered[:-1], np.ones_like(ordered[:1], bool)])
    return float(np.max(gap, where=last, initial=0.0))


def check_function(fn: object, at: str) -> None:
    """Raises where what is to be averaged is not a function."""
    if not callable(fn):
        raise ProgramError(
            "what is to be averaged is not a function.",
            at=at,
            got=shortened(fn),
            expected="a function of the latent choices, a dict by address",
            fix='write expectation(lambda z: z["x"])',
        )


def values_of(fn: Callable[[Choices], PyTree], drawn: Choices) -> PyTree:
    """A function of each draw."""
    return jax.vmap(fn)(drawn)


def mean_over_draws(x: Array, weights: np.ndarray | None = None) -> Array:
    """The mean over draws, by weights of sum 1 or alike; on the host, in double precision, where it is not traced."""
    kind = jax.eval_shape(functools.partial(jnp.mean, axis=0), x).dtype
    if isinstance(x, Tracer):
        return jnp.mean(x, 0) if weights is None else jnp.tensordot(jnp.asarray(weights, kind), x.astype(kind), 1)
    double = np.asarray(x, np.promote_types(np.float64, kind))
    return jax.device_put((double.mean(0) if weights is None else np.tensordot(weights, double, 1)).astype(kind))
