"""The evidence between bounds, from importance weights.

With w_k = p(z_k, y) / q(z_k), z_k ~ q, and Z = p(y):

    log (1/K) Σ w_k                     at most log Z in expectation: E[(1/K) Σ w_k] = Z
    log (1/K) (w(z*) + Σ_{k<K} w_k)     at least log Z in expectation over z* ~ p(· | y): E[K / (w(z*) + Σ w_k)] = 1 / Z
    ½ log (1/n) Σ w_k²                  estimates ½ log E[w²], which is at least log Z

Law: the first two are bounds by Jensen's inequality for the expectations beside them, whatever q is. By Markov's
inequality each is on the wrong side of log Z by more than t with a probability of at most exp(-t), and so is a mean of
such logarithms over groups of draws.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from vipl.posterior._psis import Smoothed

_FOURTH = 0.25
"""The k-hat below which the fourth moment of the weights is finite, and so the variance of their squares."""


class Evidence(NamedTuple):
    """The log evidence, log p(data): bounds, an estimate, and their standard errors; made by `Posterior.evidence`.

    Attributes:
      elbo: the evidence lower bound, the mean of log w.
      elbo_error: …
      lower: the bound of `num_particles` importance samples; the mean of log (1/K) Σ w over groups of K draws.
      lower_error: …
      estimate: the log of the mean of all weights, the largest smoothed.
      estimate_error: …, without the bias that smoothing has where k-hat is large.
      upper: an upper bound by `method`; inf where there is none.
      upper_error: …; with an exact draw, that of the other draws alone.
      method: "exact draw", "chi-square", or "none".
      num_particles: K.
      num_samples: how many draws.
      weights: the smoothed weights, with `k_hat` and `limit`.
    """

    elbo: float
    elbo_error: float
    lower: float
    lower_error: float
    estimate: float
    estimate_error: float
    upper: float
    upper_error: float
    method: str
    num_particles: int
    num_samples: int
    weights: Smoothed

    def __repr__(self) -> str:
        k_hat = "none" if self.weights.k_hat == -math.inf else f"{self.weights.k_hat:.2f}"
        said = f"log evidence {_said(self.estimate, self.estimate_error)} (k-hat {k_hat}"
        said += "); " if self.weights.k_hat <= self.weights.limit else ", NOT reliable); "
        said += f"at least {_said(self.lower, self.lower_error)} ({self.num_particles} particles); "
        if self.method == "none":
            return said + "no upper bound: the squares of the weights have too heavy a tail."
        return said + f"at most {_said(self.upper, self.upper_error)} ({self.method})."

    __str__ = __repr__


def _said(value: float, error: float) -> str:
    return f"{value:.3f} +- {error:.3f}"


def evidence_of(log_w: np.ndarray, weights: Smoothed, num_particles: int, exact: float | None) -> Evidence:
    """The evidence of the logarithms of weights.

    Args:
      log_w: f[n], log p(z_i, y) - log q(z_i) of draws from q.
      weights: the same, smoothed.
      num_particles: K, at most n / 2.
      exact: log p(z*, y) - log q(z*) of an exact posterior draw; None without one.
    """
    n = log_w.size
    lower = _mean_and_error(group_means(log_w, num_particles))
    if exact is not None:
        upper, method = _mean_and_error(group_means(log_w, num_particles, exact)), "exact draw"
    elif weights.k_hat < _FOURTH:
        upper, method = _chi_square(log_w), "chi-square"
    else:
        upper, method = (math.inf, math.inf), "none"
    error = math.sqrt(max(1 / weights.ess - 1 / n, 0.0))
    return Evidence(*_mean_and_error(log_w), *lower, weights.log_mean, error, *upper, method, num_particles, n, weights)


def group_means(log_w: Any, num_particles: int, exact: Any = None, xp: Any = np) -> Any:
    """f[n // K]: log (1/K) Σ w over groups of K; the first weight of each is that of the exact draw if there is one.

    Args:
      log_w: f[n].
      num_particles: K.
      exact: f[], the logarithm of the weight of an exact draw, or None.
      xp: `numpy` or `jax.numpy`.
    """
    groups = log_w[: log_w.shape[0] // num_particles * num_particles].reshape(-1, num_particles)
    if exact is not None:
        first = xp.full((groups.shape[0], 1), exact)
        groups = xp.concatenate([first, groups[:, 1:]], axis=1)
    largest = xp.max(groups, axis=1)
    shift = xp.where(xp.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):  # weights that are all zero
        return shift + xp.log(xp.mean(xp.exp(groups - shift[:, None]), axis=1))


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of independent numbers and its standard error; which is infinite where a number is."""
    if not np.isfinite(values).all():
        return float(values.mean()), math.inf
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size))


def _chi_square(log_w: np.ndarray) -> tuple[float, float]:
    """½ log of the mean of w², and its standard error to first order."""
    largest = log_w.max()
    squares = np.exp(2 * (log_w - largest))
    mean, error = _mean_and_error(squares)
    return float(largest + math.log(mean) / 2), error / (2 * mean)
