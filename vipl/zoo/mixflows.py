"""MixFlows: a mixture over the steps of a map that preserves the target.

    π = Normal(0, 1),   q_0 = Normal(1, 0.5),   T(x) = F⁻¹(F(x) + ξ mod 1),   F the distribution function of π,
    q_N = (1/N) Σ_{n < N} Tⁿ q_0,   the law of Tⁿ(x_0) with x_0 ~ q_0 and n uniform,   ξ = (√5 - 1) / 2.

T preserves π and is ergodic, as ξ is irrational; so q_N converges to π without a parameter to fit. Its density is a sum
over n, and that of Tⁿ q_0 needs only the inverse: q_0(T⁻ⁿ x) π(x) / π(T⁻ⁿ x).

In u = F(x) the target is uniform, T a rotation, and q_0 has the density r(u) = q_0(x) / π(x). The bound is the integral
-∫ r_N log r_N du with r_N(u) = (1/N) Σ_n r(u - n ξ mod 1), which `exact` sums over a grid of 200,000 points:
-0.818147, -0.260448, -0.075470 and -0.005298 for N = 1, 2, 4, 8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import ndtr, ndtri

import vipl
from vipl.inference import Enumeration
from vipl.zoo import Number, Outcome

PAPER = "Xu, Chen and Campbell (2023), MixFlows: principled variational inference via mixed flows"
OBJECTIVE = "the evidence lower bound (log evidence 0)"

SIZES = (1, 2, 4, 8)
XI = (5**0.5 - 1) / 2


class Rotate(dist.transforms.Transform):
    """Tⁿ: n steps of the map."""

    domain = codomain = dist.constraints.real  # type: ignore[assignment]

    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        """Forwards."""
        return ndtri(jnp.mod(ndtr(x) + self.n * XI, 1.0))

    def _inverse(self, y):
        return ndtri(jnp.mod(ndtr(y) - self.n * XI, 1.0))

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        """Of a map that preserves π: log π(x) - log π(y)."""
        return (y**2 - x**2) / 2

    def tree_flatten(self):
        """The number of steps is an array."""
        return (self.n,), (("n",), {})


@vipl.gen
def model():
    """The target."""
    vipl.sample("x", dist.Normal(0.0, 1.0))


@vipl.gen
def flow(size):
    """A number of steps, and where they lead."""
    n = vipl.sample("n", dist.Categorical(jnp.full(size, 1.0 / size)))
    vipl.sample("x", dist.TransformedDistribution(dist.Normal(1.0, 0.5), Rotate(n)))


def mixed(size: int):
    """q_N: the number of steps is summed out."""
    return vipl.marginal(flow(size), "x", Enumeration())


def bound(size: int) -> vipl.Expectation:
    """The bound of q_N as an objective without arguments."""
    return vipl.expectation(lambda: vipl.objectives.elbo(model(), mixed(size), {}))


def exact(size: int, num_points: int = 200_000) -> float:
    """The bound of q_N by the midpoint rule in u."""
    u = (np.arange(num_points) + 0.5) / num_points
    x = np.asarray(ndtri(np.mod(u - np.arange(size)[:, None] * XI, 1.0)), "float64")
    r = np.mean(2.0 * np.exp(x**2 / 2 - 2 * (x - 1.0) ** 2), axis=0)
    return float(-np.mean(r * np.log(r)))


def run(progress: bool = True) -> Outcome:
    """Estimates each bound with 100,000 draws; the tolerance is 5 standard errors."""
    keys, numbers = jax.random.split(jax.random.key(0), 100_000), []
    for size in SIZES:
        values = jax.jit(jax.vmap(bound(size).estimate))(keys)
        numbers.append(
            Number(f"bound, N = {size}", float(values.mean()), exact(size), 5 * float(values.std()) / 1e5**0.5)
        )

    def draw(figure):
        x = jnp.linspace(-3.0, 3.0, 600)
        for axes, size in zip(figure.subplots(1, 4, sharey=True), SIZES, strict=True):
            log_q = jax.jit(jax.vmap(lambda x, size=size: mixed(size).assess({"x": x}).log_prob))(x)
            axes.plot(x, jnp.exp(log_q), linewidth=1, label="q")
            axes.plot(x, jnp.exp(dist.Normal(0.0, 1.0).log_prob(x)), "k--", linewidth=1, label="target")
            axes.set(xlabel="x", title=f"N = {size}")
        figure.axes[0].set_ylabel("density")
        figure.axes[0].legend()

    return Outcome(numbers, draw)
