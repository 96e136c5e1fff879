"""A hidden Markov chain with finitely many states, summed over exactly."""

from __future__ import annotations

from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints

from vipl._checks import whole_number
from vipl._types import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, Shaped
from vipl.distributions._sums import log_total, log_weights


class HiddenMarkov(dist.Distribution):
    """Observations of a hidden Markov chain; its states are summed out.

        z_1 ~ initial,   z_{t+1} ~ transition[z_t],   y_t ~ observation[z_t],   t = 1, ..., T.

    log_prob(y) = log Σ_z p(z, y) is exact and differentiable, by products of T matrices in log space, parallel in time:
    O(log T) steps of O(T S³) operations.

    Args:
      initial_logits: f[S]; -inf where the chain does not begin.
      transition_logits: f[S, S], or f[T - 1, S, S]; rows are normalized; -inf for steps that cannot be,
        but not for all of a row: a state that is never reached needs one, too.
      observation: a distribution of batch shape [S], or [T, S].
      num_steps: T.
      observed: bool[T]: where it is False the datum is missing: it does not count, whatever its value, NaN included.
        None: all are observed.

    Reference: Rabiner (1989), section III; Hassan, Sarkka and Garcia-Fernandez (2021), "Temporal parallelization of
    inference in hidden Markov models".
    """

    arg_constraints = {"initial_logits": log_weights}
    pytree_data_fields = ("initial_logits", "transition_logits", "observation", "observed")
    pytree_aux_fields = ("num_steps",)
    observation: Any  # a distribution; NumPyro does not say that what it returns are arrays

    def __init__(
        self,
        initial_logits: Float[ArrayLike, " S"],
        transition_logits: Float[ArrayLike, "*steps S S"],
        observation: dist.Distribution,
        num_steps: SupportsIndex,
        observed: Bool[Array, " T"] | None = None,
        *,
        validate_args: bool | None = None,
    ):
        """Keeps the parameters."""
        self.initial_logits, self.transition_logits = jnp.asarray(initial_logits), jnp.asarray(transition_logits)
        num_steps = whole_number(num_steps, "num_steps", "HiddenMarkov")
        self.observation, self.num_steps, self.observed = observation, num_steps, observed
        super().__init__((), (num_steps, *observation.event_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)  # type: ignore[arg-type]
    def support(self) -> constraints.Constraint:
        """That of the observations."""
        return constraints.independent(self.observation.support, 1)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Shaped[Array, "*sample T ..."]:
        """[*sample_shape, T, ...], data; the states are drawn and forgotten."""
        if sample_shape:
            flat = jax.random.split(key, sample_shape)
            draw = self.sample
            for _ in sample_shape:
                draw = jax.vmap(draw)
            return draw(flat)
        state_key, data_key = jax.random.split(key)
        states = self._draw_path(state_key, self._log_transitions())
        values = jax.vmap(lambda k: self.observation.sample(k))(jax.random.split(data_key, self.num_steps))
        if len(self.observation.batch_shape) == 2:
            values = jax.vmap(lambda v, t: v[t])(values, jnp.arange(self.num_steps))
        return jax.vmap(lambda v, z: v[z])(values, states)

    def log_prob(self, value: Shaped[Array, "*batch T ..."]) -> Float[Array, "*batch"]:
        """f[...], the log density of the data; leading axes are series of their own."""
        if jnp.ndim(value) > len(self.event_shape):
            return jax.vmap(self.log_prob)(value)
        return self._log_evidence(self.log_likelihoods(value))

    def log_likelihoods(self, value: Shaped[Array, "T ..."]) -> Float[Array, "T S"]:
        """f[T, S], log p(y_t | z_t); 0 where a datum is missing."""
        value = jnp.asarray(value)
        if self.observed is not None:
            seen = jnp.reshape(self.observed, (-1,) + (1,) * len(self.observation.event_shape))
            value = jnp.where(seen, value, self.observation.support.feasible_like(value))
        each = jnp.broadcast_to(value[:, None], (len(value), self.initial_logits.shape[-1], *value.shape[1:]))
        in_time = len(self.observation.batch_shape) == 2
        log_likelihoods = (self.observation.log_prob if in_time else jax.vmap(self.observation.log_prob))(each)
        if self.observed is None:
            return log_likelihoods
        return jnp.where(jnp.reshape(self.observed, (-1, 1)), log_likelihoods, 0.0)

    def posterior_marginals(self, value: Shaped[Array, "T ..."]) -> Float[Array, "T S"]:
        """f[T, S], p(z_t | y): the derivative of the log density in the log likelihoods."""
        return jax.grad(self._log_evidence)(self.log_likelihoods(value))

    def posterior_sample(self, key: PRNGKeyArray, value: Shaped[Array, "T ..."]) -> Int[Array, " T"]:
        """i[T], a path z ~ p(z | y); exact, parallel in time."""
        log_likelihoods = self.log_likelihoods(value)
        return self._draw_path(key, self._log_transitions(), log_likelihoods)

    def _log_transitions(self) -> Float[Array, "T-1 S S"]:
        """f[T - 1, S, S], normalized."""
        rows = jax.nn.log_softmax(self.transition_logits, axis=-1)
        return jnp.broadcast_to(rows, (self.num_steps - 1, *rows.shape[-2:]))

    def _log_evidence(self, log_likelihoods: Float[Array, "T S"]) -> Float[Array, ""]:
        first = jax.nn.log_softmax(self.initial_logits) + log_likelihoods[0]
        steps = self._log_transitions() + log_likelihoods[1:, None, :]
        if self.num_steps == 1:
            return log_total(first)
        total = lax.associative_scan(_log_product, steps)[-1]
        return log_total(jnp.ravel(first[:, None] + total))

    def _draw_path(
        self,
        key: PRNGKeyArray,
        log_transitions: Float[Array, "T-1 S S"],
        log_likelihoods: Float[Array, "T S"] | None = None,
    ) -> Int[Array, " T"]:
        """Backwards: the last state, then for every state of t + 1 a state of t; the maps are composed in parallel."""
        num, size = self.num_steps, self.initial_logits.shape[-1]
        if log_likelihoods is None:
            log_likelihoods = jnp.zeros((num, size), log_transitions.dtype)
        first = jax.nn.log_softmax(self.initial_logits) + log_likelihoods[0]
        if num == 1:
            return jax.random.categorical(key, first)[None]
        steps = log_transitions + log_likelihoods[1:, None, :]
        products = lax.associative_scan(_log_product, steps)  # of the first t steps
        filtered = jnp.concatenate([first[None], log_total(first[None, :, None] + products, axis=1)])  # f[T, S]
        last_key, key = jax.random.split(key)
        last = jax.random.categorical(last_key, filtered[-1])
        # for each next state (row), a state drawn from p(z_t | z_{t+1}, y_1..t)
        backward = jnp.swapaxes(filtered[:-1, :, None] + log_transitions, 1, 2)
        maps = jax.random.categorical(key, backward, axis=-1)  # i[T - 1, S]
        composed = lax.associative_scan(lambda later, earlier: jax.vmap(lambda m, i: m[i])(earlier, later), maps,
                                        reverse=True)  # fmt: skip
        return jnp.append(composed[:, last], last)


def _log_product(a: Float[Array, "*n S S"], b: Float[Array, "*n S S"]) -> Float[Array, "*n S S"]:
    """Log (exp a @ exp b), for stacks of matrices."""
    return log_total(a[..., :, :, None] + b[..., None, :, :], axis=-2)
