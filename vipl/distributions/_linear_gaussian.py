"""A linear-Gaussian state-space model, its states integrated out exactly."""

from __future__ import annotations

from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints

from vipl._checks import whole_number
from vipl._types import Array, ArrayLike, Bool, Float, PRNGKeyArray

Moments = tuple[Float[Array, "T n"], Float[Array, "T n n"]]
"""Means and covariances of the states."""

Map = tuple[Float[Array, "T n n"], Float[Array, "T n"]]
"""Of each step a matrix M and an offset o: x -> M x + o."""


class LinearGaussian(dist.Distribution):
    """Observations of a linear-Gaussian chain; its states are integrated out.

        x_1 ~ Normal(m, P),   x_{t+1} = A x_t + b + Normal(0, Q),   y_t = H x_t + c + Normal(0, R),   t = 1, ..., T.

    log_prob(y) is exact and differentiable, by the Kalman filter as an associative scan: O(log T) steps in parallel.

    Args:
      initial_mean: f[n], m.
      initial_cov: f[n, n], P.
      transition: f[n, n], A, or f[T - 1, n, n].
      transition_cov: f[n, n], Q, or f[T - 1, n, n].
      emission: f[d, n], H, or f[T, d, n].
      emission_cov: f[d, d], R, or f[T, d, d].
      num_steps: T.
      transition_bias: f[n], b, or f[T - 1, n]. None: 0.
      emission_bias: f[d], c, or f[T, d]. None: 0.
      observed: bool[T]: where it is False the datum is missing: it does not count, whatever its value, NaN included.

    Reference: Sarkka and Garcia-Fernandez (2021), "Temporal parallelization of Bayesian smoothers", section IV.
    """

    arg_constraints = {"initial_mean": constraints.real_vector}
    support = constraints.independent(constraints.real, 2)  # type: ignore[assignment]
    reparametrized_params = ["initial_mean"]
    pytree_data_fields = (
        "initial_mean", "initial_cov", "transition", "transition_cov", "emission", "emission_cov",
        "transition_bias", "emission_bias", "observed",
    )  # fmt: skip
    pytree_aux_fields = ("num_steps",)

    def __init__(
        self,
        initial_mean: Float[ArrayLike, " n"],
        initial_cov: Float[ArrayLike, "n n"],
        transition: Float[ArrayLike, "*steps n n"],
        transition_cov: Float[ArrayLike, "*steps n n"],
        emission: Float[ArrayLike, "*steps d n"],
        emission_cov: Float[ArrayLike, "*steps d d"],
        num_steps: SupportsIndex,
        *,
        transition_bias: Float[ArrayLike, "*steps n"] | None = None,
        emission_bias: Float[ArrayLike, "*steps d"] | None = None,
        observed: Bool[Array, " T"] | None = None,
        validate_args: bool | None = None,
    ):
        """Keeps the parameters."""
        self.initial_mean, self.initial_cov = jnp.asarray(initial_mean), jnp.asarray(initial_cov)
        self.transition, self.transition_cov = jnp.asarray(transition), jnp.asarray(transition_cov)
        self.emission, self.emission_cov = jnp.asarray(emission), jnp.asarray(emission_cov)
        n, d = self.emission.shape[-1], self.emission.shape[-2]
        self.transition_bias = jnp.zeros(n) if transition_bias is None else jnp.asarray(transition_bias)
        self.emission_bias = jnp.zeros(d) if emission_bias is None else jnp.asarray(emission_bias)
        num_steps = whole_number(num_steps, "num_steps", "LinearGaussian")
        self.num_steps, self.observed = num_steps, observed
        super().__init__((), (num_steps, d), validate_args=validate_args)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample T d"]:
        """f[*sample_shape, T, d], data; differentiable in all parameters."""
        if sample_shape:
            draw = self.sample
            for _ in sample_shape:
                draw = jax.vmap(draw)
            return draw(jax.random.split(key, sample_shape))
        n, d = self.emission.shape[-1], self.emission.shape[-2]
        state_key, data_key = jax.random.split(key)
        s = self._steps()
        noise = jax.random.normal(state_key, (self.num_steps, n), self.initial_mean.dtype)
        spread = jnp.linalg.cholesky(jnp.concatenate([self.initial_cov[None], s.transition_cov]))
        moved = jnp.einsum("tij,tj->ti", spread, noise)
        offsets = moved + jnp.concatenate([self.initial_mean[None], s.transition_bias])
        matrices = jnp.concatenate([jnp.zeros((1, n, n), offsets.dtype), s.transition])
        _, states = lax.associative_scan(_affine, (matrices, offsets))
        noise = jax.random.normal(data_key, (self.num_steps, d), offsets.dtype)
        blur = jnp.einsum("tij,tj->ti", jnp.linalg.cholesky(s.emission_cov), noise)
        return jnp.einsum("tij,tj->ti", s.emission, states) + s.emission_bias + blur

    def log_prob(self, value: Float[Array, "*batch T d"]) -> Float[Array, "*batch"]:
        """f[...], the log density of the data; leading axes are series of their own."""
        if jnp.ndim(value) > len(self.event_shape):
            return jax.vmap(self.log_prob)(value)
        s, y = self._seen(value)
        mean, cov = self._filter(s, y)
        n = self.emission.shape[-1]
        before_mean = jnp.concatenate(
            [self.initial_mean[None], jnp.einsum("tij,tj->ti", s.transition, mean[:-1]) + s.transition_bias]
        )
        moved = s.transition @ cov[:-1] @ jnp.swapaxes(s.transition, 1, 2) + s.transition_cov
        before_cov = jnp.concatenate([self.initial_cov.reshape(1, n, n), moved])
        predicted = jnp.einsum("tij,tj->ti", s.emission, before_mean) + s.emission_bias
        spread = s.emission @ before_cov @ jnp.swapaxes(s.emission, 1, 2) + s.emission_cov
        terms = dist.MultivariateNormal(predicted, spread, validate_args=False).log_prob(y)
        if self.observed is not None:
            terms = jnp.where(self.observed, terms, 0.0)
        return jnp.sum(terms)

    def posterior_marginals(self, value: Float[Array, "T d"]) -> Moments:
        """Means f[T, n] and covariances f[T, n, n] of the states given all data: the smoother."""
        matrices, offsets, covs = self._backward(*self._filter_of(value))

        # the states of t from those of t + 1: x_t = G x_{t+1} + o + Normal(0, L); the last from nothing
        def combine(later, earlier):
            g1, o1, l1 = later
            g2, o2, l2 = earlier
            return (
                g2 @ g1,
                jnp.einsum("tij,tj->ti", g2, o1) + o2,
                g2 @ l1 @ jnp.swapaxes(g2, 1, 2) + l2,
            )

        _, mean, cov = lax.associative_scan(combine, (matrices, offsets, covs), reverse=True)
        return mean, cov

    def posterior_sample(self, key: PRNGKeyArray, value: Float[Array, "T d"]) -> Float[Array, "T n"]:
        """f[T, n], a path x ~ p(x | y); exact, parallel in time, differentiable."""
        matrices, offsets, covs = self._backward(*self._filter_of(value))
        noise = jax.random.normal(key, offsets.shape, offsets.dtype)
        tiny = jnp.finfo(covs.dtype).eps * jnp.eye(covs.shape[-1], dtype=covs.dtype)
        blurred = offsets + jnp.einsum("tij,tj->ti", jnp.linalg.cholesky(covs + tiny[None]), noise)
        _, path = lax.associative_scan(_affine, (matrices, blurred), reverse=True)
        return path

    # --- how ----------------------------------------------------------------------------------------------

    def _steps(self) -> Steps:
        """All parameters with a leading axis over the steps."""
        t = self.num_steps
        n, d = self.emission.shape[-1], self.emission.shape[-2]
        return Steps(
            jnp.broadcast_to(self.transition, (t - 1, n, n)),
            jnp.broadcast_to(self.transition_cov, (t - 1, n, n)),
            jnp.broadcast_to(self.transition_bias, (t - 1, n)),
            jnp.broadcast_to(self.emission, (t, d, n)),
            jnp.broadcast_to(self.emission_cov, (t, d, d)),
            jnp.broadcast_to(self.emission_bias, (t, d)),
        )

    def _seen(self, value: Float[Array, "T d"]) -> tuple[Steps, Float[Array, "T d"]]:
        """The steps and the data, where a missing datum becomes an observation of nothing."""
        s, y = self._steps(), jnp.asarray(value)
        if self.observed is None:
            return s, y
        seen = jnp.reshape(self.observed, (-1, 1))
        nothing = jnp.eye(self.emission.shape[-2], dtype=s.emission_cov.dtype)
        return (
            s._replace(
                emission=jnp.where(seen[..., None], s.emission, 0.0),
                emission_cov=jnp.where(seen[..., None], s.emission_cov, nothing),
                emission_bias=jnp.where(seen, s.emission_bias, 0.0),
            ),
            jnp.where(seen, y, 0.0),
        )

    def _filter_of(self, value: Float[Array, "T d"]) -> tuple[Steps, Float[Array, "T n"], Float[Array, "T n n"]]:
        s, y = self._seen(value)
        return s, *self._filter(s, y)

    def _filter(self, s: Steps, y: Float[Array, "T d"]) -> Moments:
        """Means f[T, n] and covariances f[T, n, n] of the states given the data so far."""
        n = self.emission.shape[-1]
        eye = jnp.eye(n, dtype=s.transition_cov.dtype)
        # the first step is one from nothing: A = 0, b = m, Q = P
        transition = jnp.concatenate([jnp.zeros((1, n, n), eye.dtype), s.transition])
        bias = jnp.concatenate([self.initial_mean[None], s.transition_bias])
        cov = jnp.concatenate([self.initial_cov[None], s.transition_cov])

        def element(a_t, b_t, q_t, h_t, r_t, c_t, y_t):
            spread = h_t @ q_t @ h_t.T + r_t
            gain = jnp.linalg.solve(spread, h_t @ q_t).T
            left = eye - gain @ h_t
            error = y_t - c_t - h_t @ b_t
            back = jnp.linalg.solve(spread, h_t @ a_t).T  # A' H' S^-1
            return left @ a_t, b_t + gain @ error, left @ q_t, back @ error, back @ h_t @ a_t

        elements = jax.vmap(element)(transition, bias, cov, s.emission, s.emission_cov, s.emission_bias, y)
        _, mean, cov, _, _ = lax.associative_scan(jax.vmap(_filter_product), elements)
        return mean, 0.5 * (cov + jnp.swapaxes(cov, 1, 2))

    def _backward(
        self, s: Steps, mean: Float[Array, "T n"], cov: Float[Array, "T n n"]
    ) -> tuple[Float[Array, "T n n"], Float[Array, "T n"], Float[Array, "T n n"]]:
        """x_t = G_t x_{t+1} + o_t + Normal(0, L_t) given the data up to t; for the last step the filter itself."""

        def element(a, q, b, m, p):
            ahead = a @ p @ a.T + q
            g = jnp.linalg.solve(ahead, a @ p).T
            left = p - g @ ahead @ g.T
            return g, m - g @ (a @ m + b), 0.5 * (left + left.T)

        g, o, left = jax.vmap(element)(s.transition, s.transition_cov, s.transition_bias, mean[:-1], cov[:-1])
        return (
            jnp.concatenate([g, jnp.zeros_like(cov[-1:])]),
            jnp.concatenate([o, mean[-1:]]),
            jnp.concatenate([left, cov[-1:]]),
        )


class Steps(NamedTuple):
    """The parameters with a leading axis over the steps."""

    transition: Float[Array, "T-1 n n"]
    transition_cov: Float[Array, "T-1 n n"]
    transition_bias: Float[Array, "T-1 n"]
    emission: Float[Array, "T d n"]
    emission_cov: Float[Array, "T d d"]
    emission_bias: Float[Array, "T d"]


def _affine(first: Map, second: Map) -> Map:
    """X -> M2 (M1 x + o1) + o2."""
    return second[0] @ first[0], jnp.einsum("tij,tj->ti", second[0], first[1]) + second[1]


def _filter_product(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
    """Two spans of filtering, one after the other (Sarkka and Garcia-Fernandez, lemma 8)."""
    a1, b1, c1, eta1, j1 = first
    a2, b2, c2, eta2, j2 = second
    eye = jnp.eye(a1.shape[-1], dtype=a1.dtype)
    forward = jnp.linalg.solve((eye + c1 @ j2).T, a2.T).T  # A2 (I + C1 J2)^-1
    back = jnp.linalg.solve((eye + j2 @ c1).T, a1).T  # A1' (I + J2 C1)^-1
    return (
        forward @ a1,
        forward @ (b1 + c1 @ eta2) + b2,
        forward @ c1 @ a2.T + c2,
        back @ (eta2 - j2 @ b1) + eta1,
        back @ j2 @ a1 + j1,
    )
