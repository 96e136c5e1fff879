"""Pareto-smoothed importance sampling: how far a guide is from the posterior, by ArviZ.

Reference: Vehtari et al. (2024), "Pareto smoothed importance sampling"; Yao et al. (2018), "Yes, but did it work?".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np

from vipl.errors import ChoiceError

_NO_WEIGHT = -700.0
"""The logarithm of a weight that stands for zero."""
_EQUAL = 0.01
"""Logarithms of weights that differ by less are rounding: the weights have no tail."""


class Smoothed(NamedTuple):
    """Smoothed importance weights.

    Attributes:
      log_weights: f[n], normalized: their exponentials sum to one.
      k_hat: the shape of the Pareto distribution of the largest weights; -inf where these are equal up to rounding, inf
        where nearly all are zero beside the largest, so that none can be fitted, and the weights are not smoothed.
      ess: 1 / Σ w², how many exact draws the weighted ones are worth.
      limit: the k-hat up to which n draws are reliable: min(1 - 1 / log10(n), 0.7).
      log_mean: the logarithm of the mean of the weights before they were normalized.
    """

    log_weights: np.ndarray
    k_hat: float
    ess: float
    limit: float
    log_mean: float


def smooth(log_weights: jax.Array | np.ndarray) -> Smoothed:
    """Smooths the largest of some importance weights.

    Args:
      log_weights: f[n], log p(z_i, data) - log q(z_i) of draws from q.
    """
    from arviz_stats.base.array import array_stats

    raw = np.asarray(log_weights, np.float64)
    if np.isnan(raw).any() or np.isposinf(raw).any() or not np.isfinite(raw).any():
        raise ChoiceError(
            "importance weights are not numbers.",
            at="the draws of a posterior",
            got=f"{np.isnan(raw).sum()} NaN, {np.isposinf(raw).sum()} infinite, {np.isneginf(raw).sum()} zeros among "
            f"{raw.size} weights",
            expected="finite log densities of model and guide at the guide's draws",
            fix="see which site is not finite: posterior.program.assess(draw).log_prob",
        )
    largest, middle = raw.max(), np.argsort(raw)[raw.size // 2]  # the one in the middle is not smoothed
    raw = np.maximum(raw - largest, _NO_WEIGHT)
    tail = np.sort(raw)[-math.ceil(min(0.2 * raw.size, 3 * math.sqrt(raw.size))) :]  # the largest, as PSIS takes them
    if np.ptp(tail) < _EQUAL:
        smoothed, k_hat = raw, -np.inf
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            smoothed, k_hat = array_stats.psislw(-raw)  # it takes the negative logarithms of the weights
        if not (np.isfinite(smoothed).all() and np.isfinite(k_hat)):  # too few weights that are not zero to have a tail
            smoothed, k_hat = raw, np.inf
    smoothed = np.asarray(smoothed)
    smoothed = smoothed - np.logaddexp.reduce(smoothed)
    log_mean = float(largest + raw[middle] - smoothed[middle] - math.log(raw.size))
    ess = float(np.exp(-np.logaddexp.reduce(2 * smoothed)))
    return Smoothed(smoothed, float(k_hat), ess, min(1 - 1 / math.log10(raw.size), 0.7), log_mean)
