"""Normalizing flows as guides; the transformations and their networks are NumPyro's, those of couplings flowjax's."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vipl._checks import whole_number
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.errors import DistributionError, ProgramError, shortened
from vipl.gen import Program
from vipl.gen._choices import Address
from vipl.guides._flow_layers import ARCHITECTURES, Layers
from vipl.guides._joint import JointGuide


class Flow(JointGuide):
    """A normalizing flow, in unconstrained coordinates.

    v ~ N(0, I),   u = loc + exp(log_scale) f_m(... f_1(v)),
    log r(u) = log N(v; 0, I) - Σ_i log |det ∂f_i| - Σ_j log_scale_j.

    Between two f_i the order of the coordinates is reversed. What the f_i are is the `architecture`:

        "autoregressive"   f(v)_j = m_j(v_<j) + exp(s_j(v_<j)) v_j, with m and s of one masked network.
        "block_neural"     f(v)_j, a network in v_<j and v_j that increases in v_j: skew and several modes of one
                           coordinate given those before it, where the two others have a shift, a scale and a spline.
        "coupling"         the first half of v stays; each number of the second goes through a rational-quadratic
                           spline on [-4, 4], the identity outside, and then a shift and a scale, whose parameters a
                           network computes from the first half. Needs flowjax: `pip install 'vipl[flows]'`.

    The density of the guide's own draws, which is all that a bound asks for, is exact and needs no inverse. The density
    of a given value, as of `assess` and of `sticking_the_landing`, needs one of each f_i:

        architecture        draw          density of a given value
        "autoregressive"    1 network     exact; n networks
        "block_neural"      1 network     by bisection to the last digits; n times 35 networks, in float64 n times 64
        "coupling"          1 network     exact; 1 network

    First derivatives are unbiased. The density of a coupling has kinks at the knots of the splines: Hessians by
    pathwise derivatives miss them.

    Parameters: `loc`, `log_scale` f[n], and the networks' under `layers`.
    Use it for skew, curvature and heavy or light tails, after a Gaussian was found not to fit; with a `frame`, that of
    the Gaussian. "autoregressive" is the cheapest that fits most; "block_neural" for few coordinates; "coupling" where
    densities of given values are wanted. Needs two or more coordinates.

    Reference: Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow", eq. (10); De
    Cao, Titov and Aziz (2019), "Block neural autoregressive flow", eqs. (8) to (10); Durkan et al. (2019), "Neural
    spline flows", eqs. (4) and (5) and section 3.1.
    """

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        *,
        architecture: str = "autoregressive",
        num_layers: SupportsIndex | None = None,
        hidden: tuple[int, ...] | None = None,
        num_bins: int | None = None,
        **options: Any,
    ):
        """See `JointGuide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          architecture: "autoregressive", "block_neural" or "coupling".
          num_layers: how many transformations. None: 2, of a coupling 4; one of these leaves half of the numbers.
          hidden: the sizes of the hidden layers of a network; "autoregressive": each at least n; "block_neural": for
            each coordinate; "coupling": all of one size. None: one of 32 or n, whichever is more; for "block_neural"
            (8, 8).
          num_bins: how many pieces the spline of a coupling has, at least 2. None: 8.
          **options: `addresses`, `frame`.

        Raises:
          ProgramError: the architecture is none of these, or the layers do not suit it; or flowjax is not installed.
          DistributionError: there is but one coordinate.
        """
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise ProgramError(
                "the architecture of a flow is not known.",
                at="Flow",
                got=f"architecture={shortened(architecture)}",
                expected=f"one of {', '.join(map(repr, ARCHITECTURES))}",
                fix='write architecture="autoregressive"',
            )
        kind = ARCHITECTURES[architecture]
        number = kind.num_layers if num_layers is None else num_layers
        self.architecture, self.hidden, self.num_bins = architecture, hidden, num_bins
        self.num_layers = whole_number(number, "num_layers", "Flow")
        super().__init__(model, data, **options)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        own = ("architecture", "num_layers", "hidden", "num_bins")
        return super().options | {name: getattr(self, name) for name in own}

    def _check(self) -> None:
        super()._check()
        if self.latents.size < 2:
            raise DistributionError(
                "a flow is asked for a single coordinate.",
                at=f"Flow of {self.model.name}",
                got=f"{self.latents.size} real coordinate",
                expected="two or more",
                fix="use Mixture, or FullRank",
            )
        self._layers.check(f"Flow of {self.model.name}")

    @functools.cached_property
    def _layers(self) -> Layers:
        return ARCHITECTURES[self.architecture](self.latents.size, self.hidden, self.num_bins)

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        layers = [self._layers.init(k) for k in jax.random.split(key, self.num_layers)]
        return {"loc": self.center(u), "log_scale": jnp.full(self.latents.size, jnp.log(scale)), "layers": layers}

    def family(self, params: PyTree) -> dist.TransformedDistribution:
        """The base, and the flow after it."""
        n = self.latents.size
        steps: list[Any] = []
        for k, layer in enumerate(params["layers"]):
            steps += [dist.transforms.PermuteTransform(np.arange(n)[::-1].copy())] if k else []
            steps.append(self._layers.transform(layer))
        steps.append(dist.transforms.AffineTransform(params["loc"], jnp.exp(params["log_scale"])))
        return dist.TransformedDistribution(dist.Normal(jnp.zeros(n), jnp.ones(n)).to_event(1), steps)
