"""Semi-implicit guides: Gaussians whose mean is a network of noise, which is integrated out by importance sampling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.example_libraries import stax

from vipl._checks import is_integer, whole_number
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.errors import ProgramError
from vipl.gen import Program, Source, gen, sample
from vipl.gen._choices import Address
from vipl.guides._joint import CoordinatesGuide
from vipl.inference import Importance
from vipl.inference._marginal import marginal


class SemiImplicit(CoordinatesGuide):
    """A Gaussian whose mean is a network of noise, in unconstrained coordinates.

    q(u) = E_{e ~ N(0, I)}[N(u; loc + network(e), diag(exp(2 log_scale)))],

    estimated with K draws of the noise, by `vipl.marginal` and `vipl.inference.Importance(K)`:

        draw      w = (1/K) Σ_i N(u; loc + network(e_i), ...),   e_1 is that of u;   E[1 / w | u] = 1 / q(u)
        assess    the same, all e_i fresh;                                           E[w] = q(u)

    So E[log w] of a draw is at least log q(u), and the evidence lower bound by this guide is below the exact one of q:
    a lower bound of the evidence still, that grows with K to the exact one. Its gradient is unbiased for any K.
    The weights of importance sampling, `improve` and `iwelbo`, stay unbiased too. What evaluates the density of a draw
    anew (`sticking_the_landing`, `doubly_reparametrized`, `trajectory_balance`, `log_variance`) raises; what assesses
    given values (`forward_kl`, `wake_phi`, `Posterior.log_prob`) takes a key, and gets E[log w] <= log q(u).

    Parameters: `loc`, `log_scale` f[n], and the network's under `network`.
    Cost: K networks a draw. Use it for curvature and several modes where a flow is too stiff, in any number of
    coordinates, one too; not where exact densities are wanted.

    Reference: Yin and Zhou (2018), "Semi-implicit variational inference", eqs. (1) and (8); Molchanov et al. (2019),
    "Doubly semi-implicit variational inference", section 3, for both sides.
    """

    _is_exact = False

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        *,
        num_particles: SupportsIndex = 32,
        noise_size: SupportsIndex | None = None,
        hidden: tuple[int, ...] = (32, 32),
        **options: Any,
    ):
        """See `JointGuide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          num_particles: K.
          noise_size: how many numbers e has. None: n, or 2 if that is more.
          hidden: the sizes of the hidden layers of the network.
          **options: `addresses`, `frame`.

        Raises:
          ProgramError: a number is not a positive integer; or there are no hidden layers.
        """
        self.num_particles = whole_number(num_particles, "num_particles", "SemiImplicit")
        self.noise_size = None if noise_size is None else whole_number(noise_size, "noise_size", "SemiImplicit")
        is_tuple = isinstance(hidden, (tuple, list)) and all(is_integer(h) and int(h) > 0 for h in hidden)
        if not is_tuple or not hidden:
            raise ProgramError(
                "the hidden layers of a semi-implicit guide are no layers.",
                at="SemiImplicit",
                got=f"hidden={hidden!r}",
                expected="a tuple of positive integers, one or more: without them q is a Gaussian",
                fix="write hidden=(32, 32); or use FullRank",
            )
        self.hidden = tuple(map(int, hidden))
        super().__init__(model, data, **options)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        own = ("num_particles", "noise_size", "hidden")
        return super().options | {name: getattr(self, name) for name in own}

    @functools.cached_property
    def _network(self) -> tuple[int, Callable, Callable]:
        """The size of its input, `init` and `apply`."""
        hidden = [layer for h in self.hidden for layer in (stax.Dense(h), stax.Elu)]
        init, apply = stax.serial(*hidden, stax.Dense(self.latents.size))
        return self.noise_size or max(2, self.latents.size), init, apply

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        size, init, _ = self._network
        *network, last = init(key, (size,))[1]
        network = [*network, jax.tree.map(lambda x: 1.5 * scale * x, last)]
        log_scale = jnp.full(self.latents.size, jnp.log(0.3 * scale))  # most of the spread is the network's to bend
        return {"loc": self.center(u), "log_scale": log_scale, "network": network}

    def conditional(self, params: PyTree, noise: Float[Array, "*batch noise"]) -> dist.Distribution:
        """N(loc + network(e), diag(exp(2 log_scale))), over R^n."""
        mean = params["loc"] + self._network[2](params["network"], noise)
        return dist.Normal(mean, jnp.exp(params["log_scale"])).to_event(1)

    def _base(self, params: PyTree) -> Source:
        size = self._network[0]

        @gen
        def both(params: PyTree) -> None:
            noise = sample("noise", dist.Normal(jnp.zeros(size), 1.0).to_event(1))
            sample("coordinates", self.conditional(params, noise))

        return marginal(both(params), "coordinates", Importance(self.num_particles))
