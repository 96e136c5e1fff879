"""Integers with a probability each, from any smallest value on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._types import Array, Float, Int, PRNGKeyArray


class CategoricalFrom(dist.Distribution):
    """P(low + v) = softmax(logits)_v for v in 0, ..., K - 1: a Categorical from another smallest value on."""

    arg_constraints = {"logits": dist.constraints.real_vector}
    pytree_data_fields = ("logits",)
    pytree_aux_fields = ("low",)
    has_enumerate_support = True

    def __init__(self, logits: Float[Array, "*batch K"], low: int, *, validate_args: bool | None = None):
        """Keeps them.

        Args:
          logits: f[*batch, K].
          low: the smallest value.
          validate_args: as NumPyro has it.
        """
        self.logits, self.low = logits, low
        super().__init__(batch_shape=jnp.shape(logits)[:-1], validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The integers from low to low + K - 1."""
        return dist.constraints.integer_interval(self.low, self.low + jnp.shape(self.logits)[-1] - 1)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        """i[*sample_shape, *batch], draws."""
        return self.low + jax.random.categorical(key, self.logits, shape=(*sample_shape, *self.batch_shape))

    def log_prob(self, value: Int[Array, "..."]) -> Float[Array, "..."]:
        """f[...], the log probability."""
        return dist.CategoricalLogits(self.logits, validate_args=False).log_prob(value - self.low)

    def enumerate_support(self, expand: bool = True) -> Int[Array, "K ..."]:  # noqa: FBT001, FBT002 - NumPyro's
        """i[K, ...], all values."""
        values = self.low + jnp.arange(jnp.shape(self.logits)[-1]).reshape(-1, *(1,) * len(self.batch_shape))
        return jnp.broadcast_to(values, (len(values), *self.batch_shape)) if expand else values


def categorical(logits: Float[Array, "*batch K"], low: int) -> Any:
    """P(low + v) = softmax(logits)_v."""
    return CategoricalFrom(logits, low) if low else dist.Categorical(logits=logits)
