"""What every fit by natural gradients goes through: a search, then an average, and when it ends.

In the search each step is the best of `RATES` for the bound that the draws estimate; the draws stay the same while the
bound grows, for `STALLS` sets of draws. In the average each step has new draws and a rate of 1 / (t + 1). It ends when
the standard errors of all means, in units of their sd, and of all log sd are below the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipl._types import Array, Bool, Float, Int, PRNGKeyArray

TOLERANCE = 0.02
"""Standard errors, in posterior sds, at which a fit ends."""
PAIRS = 4
"""Pairs of draws in each step."""
RATES = (1.0, 0.5, 0.2, 0.05, 0.01)
"""The steps that the line search compares."""
MISSED = 0.1
"""The part of the curvature of a direction from which it is not left to Hessians at points, which miss kinks."""
SEARCH_STEPS, LEAST_STEPS, STALLS = 200, 10, 3
MOST_SKIPPED = 100
"""How many more steps of the average may be skipped than taken before it ends."""

NO_HESSIAN = (TypeError, ValueError, NotImplementedError)
"""What JAX raises where a gradient has no derivative."""


Product = Callable[[Float[Array, " n"]], Float[Array, " n"]]
"""v -> H v."""


def hessian_products(gradient: Product, u: Float[Array, " n"], mapped: Callable[[Product], Array]) -> Any:
    """The gradient at u, and what `mapped` makes of products with the Hessian there.

    In forward mode; in reverse mode, as H is symmetric, where a gradient has no forward mode: that of JAX's odeint, and
    of every function whose `custom_vjp` calls another one.

    Args:
      gradient: u -> f[n].
      u: f[n].
      mapped: (v -> H v) -> the products; it maps its argument by `vmap`, which raises where there is no forward mode.
    """
    try:
        value, product = jax.linearize(gradient, u)
        return value, mapped(product)
    except TypeError:  # any other one is raised once more
        value, transposed = jax.vjp(gradient, u)
        return value, mapped(lambda v: transposed(v)[0])


def pairs(key: PRNGKeyArray, n: int, dtype: Any) -> Float[Array, "draws n"]:
    """Standard Gaussian draws e, -e."""
    e = jax.random.normal(key, (PAIRS, n), dtype)
    return jnp.concatenate([e, -e])


class Progress(NamedTuple):
    """How far a fit is.

    Attributes:
      bounds: f[steps], the bound that each step estimates; zeros after the last.
      phase: i[], 0 for the step that only finds the scale of each coordinate, 1 for the search, 2 for the average.
      count: i[], steps taken in search and average.
      num_search: i[], steps taken in the search.
      stalls: i[], sets of draws whose bound the search did not make grow any more.
      moves: f[n], the mean over the last steps of the average of the squared steps of the means, in units of their sd.
      logs: f[n], that of the steps of log sd, both for a rate of one.
      missed: f[n + 1], the mean over the last steps of the average of the curvature that Hessians miss: of each
        coordinate, whose whole is one, and last the sum, which sees what is missed in any direction.
      squares: f[n + 1], that of its squares.
      skipped: i[], steps of the average not taken.
    """

    bounds: Float[Array, " steps"]
    phase: Int[Array, ""]
    count: Int[Array, ""]
    num_search: Int[Array, ""]
    stalls: Int[Array, ""]
    moves: Float[Array, " n"]
    logs: Float[Array, " n"]
    missed: Float[Array, " n_and_1"]
    squares: Float[Array, " n_and_1"]
    skipped: Int[Array, ""]

    @classmethod
    def begin(cls, n: int, dtype: Any, max_steps: int) -> Progress:
        """Before the first step."""
        zero, sums, more = jnp.int32(0), jnp.zeros(n, dtype), jnp.zeros(n + 1, dtype)
        bounds = jnp.zeros(SEARCH_STEPS + max_steps, dtype)
        return cls(bounds, zero, zero, zero, zero, sums, sums, more, more, zero)

    def num_average(self) -> Int[Array, ""]:
        """Steps taken in the average."""
        return jnp.where(self.phase == 2, self.count - self.num_search, 0)

    def rate(self) -> Float[Array, ""]:
        """Of the next step of the average."""
        return 1.0 / (self.num_average() + 2)

    def error(self) -> Float[Array, ""]:
        """The largest standard error of an average of so many independent steps; infinite for too few of them."""
        taken = self.num_average()
        error = jnp.sqrt(jnp.maximum(jnp.max(self.moves), jnp.max(self.logs)) / jnp.maximum(taken, 1))
        return jnp.where(taken < LEAST_STEPS, jnp.inf, error)

    def misses(self, tolerance: float) -> Bool[Array, ""]:
        """Whether Hessians miss more of a curvature than `MISSED`, by three standard errors.

        Where the average has not met its tolerance it may be too noisy for that: there, whether they miss as much again
        as they see.
        """
        weight = 4 / (3 * jnp.maximum(self.num_average(), 1))  # Σ w² of weights w_t ∝ t, which `averaged` gives
        variance = jnp.maximum(self.squares - self.missed**2, 0.0) * weight
        is_lost = ~(self.error() <= tolerance) & jnp.any(jnp.abs(self.missed[:-1]) > 1)
        return is_lost | jnp.any(jnp.abs(self.missed) > MISSED + 3 * jnp.sqrt(variance))

    def goes_on(self, tolerance: float, max_steps: int) -> Bool[Array, ""]:
        """Whether there is another step."""
        tried = self.num_average() + self.skipped
        usable = self.skipped < MOST_SKIPPED + self.num_average()
        return (self.phase < 2) | ((tried < max_steps) & usable & (self.error() > tolerance))

    def noise(self, key: PRNGKeyArray, n: int, dtype: Any) -> tuple[Float[Array, "draws n"], PRNGKeyArray]:
        """The draws of the next step, zeros for the first, and its key; the same in the search until it stalls."""
        number = jnp.where(self.phase == 2, SEARCH_STEPS + self.count + self.skipped, self.stalls)
        own = jax.random.fold_in(key, number)
        return jnp.where(self.phase == 0, 0.0, pairs(own, n, dtype)), own

    def scaled(self) -> Progress:
        """After the first step."""
        return self._replace(phase=jnp.int32(1))

    def searched(self, here: Float[Array, ""], best: Float[Array, ""]) -> Progress:
        """After a step of the search from a bound to the best that was tried."""
        count, stalls = self.count + 1, self.stalls + ~(best - here > 1e-3 + 1e-6 * jnp.abs(here))
        ends = (stalls == STALLS) | (count == SEARCH_STEPS)
        return self._replace(
            bounds=self.bounds.at[self.count].set(here),
            phase=jnp.where(ends, 2, 1).astype(jnp.int32),
            count=count,
            num_search=count,
            stalls=stalls,
        )

    def averaged(
        self, here: Float[Array, ""], moves: Float[Array, " n"], logs: Float[Array, " n"], missed: Float[Array, " n"]
    ) -> Progress:
        """After a step of the average: its bound, squared steps of means and log sds at a rate of one, and `missed`."""
        missed = jnp.append(missed, jnp.sum(missed))
        recent = 2.0 / (self.num_average() + 2)  # a mean over about the last half of the steps
        return self._replace(
            bounds=self.bounds.at[self.count].set(here),
            count=self.count + 1,
            moves=self.moves + recent * (moves - self.moves),
            logs=self.logs + recent * (logs - self.logs),
            missed=self.missed + recent * (missed - self.missed),
            squares=self.squares + recent * (missed**2 - self.squares),
        )

    def left_out(self) -> Progress:
        """After a step of the average that is not taken."""
        return self._replace(skipped=self.skipped + 1)
