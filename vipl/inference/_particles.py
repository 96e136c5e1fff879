"""Weighted particles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl.gen import Estimator, sample


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Particles:
    """Weighted choices.

    Attributes:
      choices: nested dicts of arrays with a leading axis over the particles.
      log_weights: f[num_particles], unnormalized.
      log_normalizer: f[], the log of an estimate of the normalizing constant Z = p(given); E[exp log_normalizer] = Z.
      log_joints: f[num_particles], log p(given, choices), the estimates that went into the weights; None where it is
        exact and can be evaluated again.
    """

    choices: dict[str, Any]
    log_weights: Any
    log_normalizer: Any
    log_joints: Any = None

    @property
    def log_probs(self) -> Any:
        """f[num_particles], log of the normalized weights."""
        return jax.nn.log_softmax(self.log_weights)

    @property
    def ess(self) -> Any:
        """f[], effective sample size, 1 / Σ_i W_i², of the normalized weights W: between 1 and num_particles."""
        return jnp.exp(-jax.nn.logsumexp(2.0 * self.log_probs))

    def mean(self, fn: Any) -> Any:
        """Σ_i W_i fn(choices_i): the self-normalized estimate of the posterior mean (biased, consistent)."""
        values = jax.vmap(fn)(self.choices)
        weights = jnp.exp(self.log_probs)
        return jax.tree.map(lambda v: jnp.tensordot(weights, v, axes=1), values)

    def pick(self, estimator: Estimator | None = None) -> dict[str, Any]:
        """One particle, drawn with probability proportional to its weight; a program, its site is "pick".

        Args:
          estimator: of the gradient through the choice; None: `Score()`.
        """
        index = self.pick_index(estimator)
        return jax.tree.map(lambda x: x[index], self.choices)

    def pick_index(self, estimator: Estimator | None = None) -> Any:
        """i[], the number of one particle; see `pick`."""
        if self.log_weights.shape[0] == 1:
            return 0
        return sample("pick", dist.Categorical(logits=self.log_weights), estimator)


def log_mean_exp(log_weights: Any) -> Any:
    """f[], log (1/K) Σ_i exp log_weights_i."""
    return jax.nn.logsumexp(log_weights) - jnp.log(log_weights.shape[0])
