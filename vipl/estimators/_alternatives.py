"""Other values of a site, at which the program is run again: what estimators with alternatives share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from vipl._types import Array, ArrayLike, Float, Shaped
from vipl.estimators._enumerate import is_impossible
from vipl.gen import Alternatives


class Others(NamedTuple):
    """Alternatives of every element of a distribution.

    Attributes:
      values: [n, *shape], other values of each element.
      weights: f[n, *shape], (θ - sg θ) c for each element: zero in value.
    """

    values: Shaped[Array, "n ..."]
    weights: Float[Array, "n ..."]


def stacked(x: Array, *others: tuple[ArrayLike, Array]) -> Others:
    """Pairs of a value and a weight, that broadcast to the draw `x`, as alternatives of every element."""
    values, weights = (jnp.stack([jnp.broadcast_to(v, x.shape) for v in part]) for part in zip(*others, strict=True))
    return Others(values, weights)


def one_at_a_time(x: Array, others: Others) -> Alternatives:
    """Alternatives of a whole array: in each, one element takes one of its other values.

    Args:
      x: [*shape], the draw.
      others: n other values of every element.

    Returns:
      values [n * size, *shape], weights of the same length.
    """
    n, size = others.values.shape[0], x.size
    if size == 1:
        return Alternatives(others.values, others.weights.reshape(n))
    here = jnp.eye(size, dtype=bool).reshape(size, *x.shape)
    values = jnp.where(here, others.values[:, None], x)
    return Alternatives(values.reshape(n * size, *x.shape), others.weights.reshape(n * size))


def change(theta: Any) -> Array:
    """θ - sg θ: zero, with derivative 1."""
    return theta - lax.stop_gradient(theta)


def all_values(x: Array, values: Array, log_probs: Array) -> Alternatives:
    """All values [n] of a finite support with f[n, batch], each element's in turn: ∂E[k] = Σ_j ∂p_j k(j).

    A value whose probability is zero is not looked at: there ∂p_j = 0.
    """
    if x.size > 1 or values.shape[0] == 2:
        return one_at_a_time(x, other_values(x, values, log_probs))
    # The draw's own value among them counts nothing, and is run for this: the same values for all draws, and lanes.
    log_probs = log_probs.reshape(-1)
    return Alternatives(values.reshape(-1, *x.shape), change(jnp.exp(log_probs)), ~is_impossible(log_probs))


def other_values(x: Array, values: Array, log_probs: Array) -> Others:
    """All other values of each element of a finite support; instead of an impossible one stands the draw."""
    n = values.shape[0]

    def along(row: Array, ndim: int) -> Array:
        """[n, ...] with axes of one between the first and its last `ndim`: as many as the draw has, and the first."""
        return jnp.expand_dims(row, tuple(range(1, x.ndim + 1 - ndim)))

    columns, number = along(values, 0), along(jnp.arange(n), 0)
    log_probs = jnp.broadcast_to(along(log_probs, log_probs.ndim - 1), (n, *x.shape))
    is_here = x == columns
    # Of the others in order, number j is value j before the draw's own, and value j + 1 from there on.
    is_before = is_here[1:] if n == 2 else number[:-1] < jnp.sum(jnp.where(is_here, number, 0), axis=0)
    log_p = jnp.where(is_before, log_probs[:-1], log_probs[1:])
    other = jnp.where(is_before, columns[:-1], columns[1:])
    return Others(jnp.where(is_impossible(log_p), x, other), change(jnp.exp(log_p)))
