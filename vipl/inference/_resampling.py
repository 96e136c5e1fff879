"""Resampling: which particle each particle descends from, and how derivatives pass that choice."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from vipl._types import Array, Float, Int, PRNGKeyArray
from vipl.gen import Estimator, sample


class Ancestors(dist.CategoricalLogits):
    """A Categorical whose many draws cost no more than their number: by search in the cumulated probabilities."""

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """i[*sample_shape]."""
        cumulated = jnp.cumsum(jax.nn.softmax(self.logits))
        u = jax.random.uniform(key, sample_shape, cumulated.dtype) * cumulated[-1]
        return jnp.minimum(jnp.searchsorted(cumulated, u, side="right"), cumulated.size - 1)

    def log_prob(self, value: Array) -> Array:
        """f[...], log of the normalized weights."""
        return jax.nn.log_softmax(self.logits)[value]


class Resampling(abc.ABC):
    """Base of all: one method, a program."""

    @abc.abstractmethod
    def ancestors(self, log_weights: Float[Array, " num_particles"]) -> Int[Array, " num_particles"]:
        """i[K], the ancestors, each particle i as often as K W_i in expectation.

        Args:
          log_weights: f[K], unnormalized.
        """


class Dropped(Resampling):
    """Base of those whose derivative through the choice of ancestors is dropped.

    The value of the log normalizer is what it was. Its derivative is that at fixed ancestors: BIASED, by a term of mean
    E[log Ẑ ∇ log P(ancestors)], with a far smaller variance.
    """


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Multinomial(Resampling):
    """Independent ancestors, P(i) = W_i; derivatives pass through the score of the choice: unbiased.

    Attributes:
      estimator: of the sites of the ancestors; None: `Score()`.
    """

    estimator: Estimator | None = None

    def ancestors(self, log_weights: Float[Array, " num_particles"]) -> Int[Array, " num_particles"]:
        """One site of K categories."""
        return sample("ancestors", Ancestors(log_weights).expand(log_weights.shape), self.estimator)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MultinomialDropped(Dropped):
    """Independent ancestors, P(i) = W_i, without derivative.

    Reference: Maddison et al. (2017), "Filtering variational objectives", section 3.2; Naesseth et al. (2018).
    """

    def ancestors(self, log_weights: Float[Array, " num_particles"]) -> Int[Array, " num_particles"]:
        """One site of K categories."""
        return Multinomial().ancestors(lax.stop_gradient(log_weights))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Systematic(Dropped):
    """Ancestors at positions (u + k) / K of the cumulated weights, one u ~ Uniform(0, 1), without derivative.

    Reference: Kitagawa (1996), appendix A.
    """

    def ancestors(self, log_weights: Float[Array, " num_particles"]) -> Int[Array, " num_particles"]:
        """One site, u."""
        num = log_weights.shape[0]
        return _at_positions(log_weights, sample("offset", dist.Uniform(0.0, 1.0)) + jnp.arange(num))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stratified(Dropped):
    """Ancestors at positions (u_k + k) / K of the cumulated weights, u_k ~ Uniform(0, 1), without derivative.

    Reference: Kitagawa (1996), appendix A.
    """

    def ancestors(self, log_weights: Float[Array, " num_particles"]) -> Int[Array, " num_particles"]:
        """One site of K numbers."""
        num = log_weights.shape[0]
        return _at_positions(log_weights, sample("offsets", dist.Uniform(0.0, 1.0).expand([num])) + jnp.arange(num))


def _at_positions(log_weights: Array, positions: Array) -> Array:
    """The particles whose share of the cumulated weights holds the positions, [0, K]."""
    weights = jax.nn.softmax(lax.stop_gradient(log_weights))
    cumulated = jnp.cumsum(weights)
    num = weights.shape[0]
    return jnp.minimum(jnp.searchsorted(cumulated / cumulated[-1], positions / num, side="right"), num - 1)
