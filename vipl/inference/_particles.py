"""Weighted particles.

A particle of weight zero is not looked at. Where all weights are zero there is nothing to normalize: that raises,
in compiled code when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._types import Array, Float, Int, PyTree
from vipl.distributions._sums import log_total
from vipl.errors import ProgramError, show_addresses
from vipl.gen import Estimator, sample
from vipl.gen._choices import Choices, flatten
from vipl.ir.functions import check_function
from vipl.ir.guards import alarm


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

    choices: Choices
    log_weights: Float[Array, "*batch num_particles"]
    log_normalizer: Float[Array, "*batch"]
    log_joints: Float[Array, "*batch num_particles"] | None = None

    @property
    def log_probs(self) -> Float[Array, " num_particles"]:
        """f[num_particles], log of the normalized weights."""
        return log_shares(self.log_weights, self._at)

    @property
    def ess(self) -> Float[Array, ""]:
        """f[], effective sample size, 1 / Σ_i W_i², of the normalized weights W: between 1 and num_particles."""
        return jnp.exp(-jax.nn.logsumexp(2.0 * self.log_probs))

    def mean(self, fn: Callable[[Choices], PyTree]) -> PyTree:
        """Σ_i W_i fn(choices_i): the self-normalized estimate of the posterior mean (biased, consistent)."""
        check_function(fn, "mean")
        values = jax.vmap(fn)(self.choices)
        weights = jnp.exp(self.log_probs)
        return jax.tree.map(lambda v: weighted_sum(weights, v), values)

    def pick(self, estimator: Estimator | None = None) -> Choices:
        """One particle, drawn with probability proportional to its weight; a program, its site is "pick".

        Args:
          estimator: of the gradient through the choice; None: `Score()`.
        """
        index = self.pick_index(estimator)
        return jax.tree.map(lambda x: x[index], self.choices)

    def pick_index(self, estimator: Estimator | None = None) -> Int[Array, ""]:
        """i[], the number of one particle; see `pick`."""
        if self.log_weights.shape[0] == 1:
            index = jnp.zeros((), int)
        else:
            index = sample("pick", dist.Categorical(logits=self.log_weights), estimator)
        return alarm(index, self.log_normalizer == -jnp.inf, _all_zero, self._at)

    @property
    def _at(self) -> str:
        return f"particles for {show_addresses(flatten(self.choices, 'choices'))}"


def log_shares(log_weights: Array, at: str) -> Array:
    """f[..., K], log of the weights normalized over the last axis; raises where all are zero.

    Args:
      log_weights: f[..., K].
      at: where they are, for the message.
    """
    return alarm(jax.nn.log_softmax(log_weights), jnp.any(jnp.all(log_weights == -jnp.inf, axis=-1)), _all_zero, at)


def positive(log_normalizer: Array, at: str) -> Array:
    """The log of a normalizing constant by which something is divided; raises where that is zero."""
    return alarm(log_normalizer, log_normalizer == -jnp.inf, _all_zero, at)


def _all_zero(at: str) -> ProgramError:
    return ProgramError(
        "all weights are zero: there is nothing to normalize.",
        at=at,
        got="log weights that are all -inf",
        expected="at least one particle at which the program's density is positive",
        fix="check what is given against the supports; or use more particles, or a proposal that reaches it",
    )


def weighted_sum(weights: Array, values: Array) -> Array:
    """Σ_i W_i v_i over the first axis; a value of weight 0 is not looked at."""
    w = weights.reshape(weights.shape + (1,) * (jnp.ndim(values) - 1))
    return jnp.sum(jnp.where(w != 0, w * jnp.where(w != 0, values, 0), 0), axis=0)


def log_mean_exp(log_weights: Array) -> Array:
    """f[], log (1/K) Σ_i exp log_weights_i; -inf, without derivative, where all are zero."""
    return log_total(log_weights) - jnp.log(log_weights.shape[0])
