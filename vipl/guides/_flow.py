"""Normalizing flows as guides; the transformations and their networks are NumPyro's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.example_libraries import stax
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.nn import AutoregressiveNN

from vipl._checks import is_integer, whole_number
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.errors import DistributionError, ProgramError
from vipl.gen import Program
from vipl.gen._choices import Address
from vipl.guides._joint import JointGuide


class Flow(JointGuide):
    """A normalizing flow, in unconstrained coordinates.

    v ~ N(0, I),   u = loc + exp(log_scale) f_m(... f_1(v)).

    The f_i are inverse autoregressive: a draw costs one network each; the density of a given value, n networks each.
    The density of the guide's own draw, which is all that a bound asks for, needs no inverse.

    Parameters: `loc`, `log_scale` f[n], and the networks' under `layers`.
    Use it for skew, curvature and heavy or light tails, after a Gaussian was found not to fit; with a `frame`, that of
    the Gaussian. Needs two or more coordinates.

    Reference: Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow".
    """

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        *,
        num_layers: int = 2,
        hidden: tuple[int, ...] | None = None,
        **options: Any,
    ):
        """See `JointGuide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          num_layers: how many transformations.
          hidden: the sizes of the hidden layers of a network, at least n. None: one of 32 or n, whichever is more.
          **options: `addresses`, `frame`.
        """
        self.num_layers, self.hidden = whole_number(num_layers, "num_layers", "Flow"), hidden
        super().__init__(model, data, **options)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        return super().options | {"num_layers": self.num_layers, "hidden": self.hidden}

    def _check(self) -> None:
        super()._check()
        n, hidden = self.latents.size, self.hidden
        is_tuple = isinstance(hidden, (tuple, list)) and all(is_integer(h) and int(h) >= n for h in hidden)
        if hidden is not None and not is_tuple:
            raise ProgramError(
                "the hidden layers of a flow are too small, or no layers.",
                at=f"Flow of {self.model.name}",
                got=f"hidden={hidden!r}",
                expected=f"a tuple of integers, each at least {n}, the number of coordinates",
                fix=f"write hidden=({max(32, n)},)",
            )
        if self.latents.size < 2:
            raise DistributionError(
                "a flow is asked for a single coordinate.",
                at=f"Flow of {self.model.name}",
                got=f"{self.latents.size} real coordinate",
                expected="two or more",
                fix="use Mixture, or FullRank",
            )

    @functools.cached_property
    def _network(self) -> tuple[Callable, Callable]:
        """`init` and `apply` of the network of one layer."""
        n = self.latents.size
        with jax.ensure_compile_time_eval():  # its masks are kept, and may be asked for first inside a trace
            return AutoregressiveNN(n, list(self.hidden or (max(32, n),)), param_dims=[1, 1], nonlinearity=stax.Elu)

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        n = self.latents.size
        init, _ = self._network
        layers = [init(k, (n,))[1] for k in jax.random.split(key, self.num_layers)]
        layers = jax.tree.map(lambda x: 0.1 * x, layers)  # near the identity
        return {"loc": self.center(u), "log_scale": jnp.full(n, jnp.log(scale)), "layers": layers}

    def family(self, params: PyTree) -> dist.Distribution:
        """The base, and the flow after it."""
        _, apply = self._network
        n = self.latents.size
        steps: list[Any] = []
        for k, layer in enumerate(params["layers"]):
            steps += [dist.transforms.PermuteTransform(np.arange(n)[::-1].copy())] if k else []
            steps.append(InverseAutoregressiveTransform(functools.partial(apply, layer)))
        steps.append(dist.transforms.AffineTransform(params["loc"], jnp.exp(params["log_scale"])))
        return dist.TransformedDistribution(dist.Normal(jnp.zeros(n), jnp.ones(n)).to_event(1), steps)
