"""Guides with one joint density over the coordinates of all real choices.

    u ~ r_φ on R^n,   z = T(u),   log q_φ(z) = log r_φ(u) - log |det dT/du|,

with T of `Latents`. The choices are drawn together: they are all given, or none is.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._checks import whole_number
from vipl._jax import Tracer
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.analysis.regions import Region
from vipl.errors import ChoiceError, DistributionError, ProgramError, show_address, show_aval
from vipl.estimators import ImplicitReparam
from vipl.gen import Estimated, Estimator, Program, Source, gen, sample
from vipl.gen._choices import Address, nest
from vipl.gen._estimated import only
from vipl.guides._gaussian import Mode, find_mode, lower_triangular
from vipl.guides._guide import ModelGuide
from vipl.guides._latents import Latents
from vipl.guides._natural import NO_HESSIAN
from vipl.guides._once import run_once


@dataclass(frozen=True)
class OfLatents(Estimated):
    """A law of all real choices together, with an exact density.

    Attributes:
      latents: T.
      role: the guide, for messages.
    """

    latents: Latents = field(metadata={"static": True})
    role: str = field(metadata={"static": True})

    @property
    def name(self) -> str:
        """The guide's name."""
        return self.role

    def is_exact(self) -> bool:
        """Its density is exact."""
        return True

    def _regions(self) -> dict[Address, Region]:
        return {x.address: x.region for x in self.latents.real}

    def _constraints(self) -> dict[Address, Callable[[], Any]]:
        return {x.address: functools.partial(self.latents.constraint, x.address) for x in self.latents.real}

    def _own(self, choices: dict[str, Any]) -> dict[Address, Array]:
        """Given choices by address; raises where they are not the guide's."""
        flat = only(choices, [x.address for x in self.latents.real], self.name)
        return {a: jnp.asarray(x) for a, x in flat.items()}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pushforward(OfLatents):
    """The law of T(loc + scale_tril v) for v of a program.

    Attributes:
      base: samples the vector v, f[n], at "coordinates".
      frame: (loc, scale_tril); None: v itself is u.
      exact: whether the density of `base` is exact; its estimate is divided by |det dT/du| as a density is.
    """

    base: Source
    frame: tuple[Array, Array] | None
    exact: bool = field(default=True, metadata={"static": True})

    def is_exact(self) -> bool:
        """Whether the density of `base` is."""
        return self.exact

    def _draw(self) -> tuple[dict[str, Any], Array]:
        trace = self.base.simulate()
        v = trace.choices["coordinates"]
        u = v if self.frame is None else self.frame[0] + self.frame[1] @ v
        choices, log_det = self.latents.constrain(self.latents.split(u))
        return nest(choices), trace.log_prob - log_det - self._log_det_of_frame()

    def _weigh(self, choices: dict[str, Any]) -> Array:
        u, log_det, log_inside = self.latents.located(self._own(choices))
        v = in_frame(self.latents.join(u), self.frame)
        log_v = self.base.assess({"coordinates": v}).log_prob
        return log_v - log_det - self._log_det_of_frame() + log_inside

    def _log_det_of_frame(self) -> Array:
        return jnp.zeros(()) if self.frame is None else jnp.sum(jnp.log(jnp.diagonal(self.frame[1])))


def in_frame(u: Float[Array, " n"], frame: tuple[Array, Array] | None) -> Float[Array, " n"]:
    """The v of u = loc + scale_tril v."""
    if frame is None:
        return u
    loc, scale_tril = frame
    return jax.scipy.linalg.solve_triangular(scale_tril, u - loc, lower=True)


def gaussian(loc: Float[Array, "... n"], scale_tril: Float[Array, "... n n"]) -> dist.MultivariateNormal:
    """N(loc, scale_tril scale_trilᵀ), of a triangular matrix with a positive diagonal: nobody has to look at it."""
    return dist.MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)


def check_joint(guide: ModelGuide, latents: Latents) -> None:
    """Raises where the choices have no joint density over R^n."""
    role, at = type(guide).__name__, f"{type(guide).__name__} of {guide.model.name}"
    if latents.discrete:
        raise DistributionError(
            "a guide with a joint density is asked for a discrete choice.",
            at=at,
            got=f"the discrete latent choice {show_address(latents.discrete[0].address)}",
            expected="real choices",
            fix=f'pass addresses= without it, and write combine({{"real": {role}(...), "discrete": MeanField(...)}})',
        )
    if latents.in_branch:
        raise DistributionError(
            "a guide with a joint density is asked for a choice in a branch, which may not be there.",
            at=at,
            got="a latent site inside `cond` or `switch`",
            expected="latent sites that every run meets",
            fix="use MeanField, or sample outside the branches, and select the value",
        )


def _check_frame(frame: Any, n: int, at: str) -> None:
    """Raises where a frame is not a place and a triangular scale."""
    is_pair = isinstance(frame, (tuple, list)) and len(frame) == 2
    if is_pair and [jnp.shape(x) for x in frame] == [(n,), (n, n)]:
        scale_tril = frame[1]
        if isinstance(scale_tril, Tracer) or bool(jnp.all(jnp.diagonal(scale_tril) > 0)):
            return
    raise ChoiceError(
        "the frame of a guide is not a place and a triangular scale.",
        at=at,
        got=", ".join(show_aval(jnp.asarray(x)) for x in frame) if is_pair else show_aval(frame),
        expected=f"(loc, scale_tril), f[{n}] and f[{n},{n}] with a positive diagonal",
        fix="pass the mean and the Cholesky factor of the covariance of the coordinates",
    )


class CoordinatesGuide(ModelGuide):
    """A guide that draws the coordinates of all real choices together.

    Attributes:
      frame: (loc, scale_tril), f[n] and f[n, n] with positive diagonal: the coordinates are loc + scale_tril v, with v
        of the family. None: v itself. A frame in which the posterior has about unit scale makes the parameters easy to
        learn.
    """

    _is_exact = True

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        *,
        addresses: Any = None,
        frame: tuple[Array, Array] | None = None,
    ):
        """See `Guide`; `frame` as said there."""
        self.frame = frame
        super().__init__(model, data, addresses=addresses)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        return super().options | {"frame": self.frame}

    @abc.abstractmethod
    def _base(self, params: PyTree) -> Source:
        """What samples the vector v, f[n], at "coordinates"."""

    def _check(self) -> None:
        check_joint(self, self.latents)
        if self.frame is not None:
            _check_frame(self.frame, self.latents.size, f"{type(self).__name__} of {self.model.name}")

    def _function(self) -> Callable[[PyTree], Any]:
        role = f"{type(self).__name__} of {self.model.name}"

        def function(params: PyTree) -> Any:
            return Pushforward(self.latents, role, self._base(params), self.frame, self._is_exact).inline((), role)

        return function

    def center(self, u: dict[Address, Array]) -> Float[Array, " n"]:
        """The vector v of given coordinates."""
        return in_frame(self.latents.join(u), self.frame)


class JointGuide(CoordinatesGuide):
    """A guide whose real choices have one joint density in the coordinates, which is a distribution of NumPyro's."""

    estimator: Estimator | None = None

    @abc.abstractmethod
    def family(self, params: PyTree) -> dist.Distribution:
        """The distribution over R^n of some parameters."""

    def _base(self, params: PyTree) -> Source:
        @gen
        def base(params: PyTree) -> None:
            sample("coordinates", self.family(params), self.estimator)

        return base(params)


class FullRank(JointGuide):
    """A Gaussian with any covariance, in unconstrained coordinates.

    u ~ N(loc, L Lᵀ),   L lower triangular, its diagonal exp(log_diag).

    Parameters: `loc` f[n], `log_diag` f[n], `lower` f[n, n], of which the part below the diagonal counts.
    Cost: n² parameters, O(n²) a draw and a density. Use it up to some hundred coordinates; it has every correlation,
    and the tails and the one mode of a Gaussian. Exact for Gaussian posteriors.

    Reference: Kucukelbir et al. (2017), "Automatic differentiation variational inference", eq. (9).
    """

    def family(self, params: PyTree) -> dist.MultivariateNormal:
        """N(loc, L Lᵀ)."""
        scale_tril = jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(params["log_diag"]))
        return gaussian(params["loc"], scale_tril)

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        n = self.latents.size
        return self.of_moments(self.center(u), scale * jnp.eye(n))

    @staticmethod
    def of_moments(loc: Float[Array, " n"], scale_tril: Float[Array, "n n"]) -> PyTree:
        """The parameters of N(loc, scale_tril scale_trilᵀ)."""
        return {"loc": loc, "log_diag": jnp.log(jnp.diagonal(scale_tril)), "lower": jnp.tril(scale_tril, -1)}


class Laplace(FullRank):
    """A Gaussian at a mode of the joint density in unconstrained coordinates, with the covariance of its curvature.

    u ~ N(u*, (-∇² log p(u*))⁻¹),   u* a mode of log p(T(u), data) + log |det dT/du|.

    Parameters: those of `FullRank`; `init` finds them by Newton steps with a line search, from where `start` says.
    Cost: n Hessian columns a step, some ten steps. Use it as the quickest answer, and for its start; `FullRank` fits
    the whole posterior, where this one looks at its mode alone. Exact for Gaussian posteriors. A density without a
    mode, as that of a centred hierarchy, raises.

    Reference: Tierney and Kadane (1986), "Accurate approximations for posterior moments and marginal densities".
    """

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        found = run_once("a mode", _mode, (self,), (self.latents.join(u),))
        if not isinstance(found.loc, Tracer) and not (jnp.min(found.curvature) > 0 and found.decrement < 0.1):
            raise ChoiceError(
                "no mode of the joint density is found.",
                at=f"init of {self!r}",
                got=f"where the search ended the next step is {float(found.decrement):.2g} sd, and the least curvature "
                f"{float(jnp.min(found.curvature)):.2g}",
                expected="a mode with positive curvature",
                fix="pass start={...} near one; or use FullRank, which needs none",
            )
        return self.of_moments(self.center(self.latents.split(found.loc)), self._in_frame(found.factor))

    def _shapes(self) -> PyTree:
        return jax.eval_shape(lambda: super(Laplace, self)._init(self._zero(), jnp.ones(()), jax.random.key(0)))

    def _in_frame(self, factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """The triangular scale of v for u of a factor."""
        if self.frame is not None:
            factor = jax.scipy.linalg.solve_triangular(self.frame[1], factor, lower=True)
        return lower_triangular(factor)


def _mode(guide: Laplace, start: Float[Array, " n"]) -> Mode:
    try:
        return find_mode(guide.latents.density(), start)
    except NO_HESSIAN as err:
        raise ProgramError(
            "the joint density has no second derivatives.",
            at=f"init of {guide!r}",
            got="a function whose gradient JAX cannot differentiate, such as a callback",
            expected="a model that is twice differentiable in its latent choices",
            fix="use FullRank, MeanField or Pathfinder, which need gradients alone",
        ) from err


class LowRank(JointGuide):
    """A Gaussian whose covariance is diagonal plus low rank, in unconstrained coordinates.

    u ~ N(loc, diag(exp(2 log_diag)) + F Fᵀ),   F f[n, rank].

    Parameters: `loc` f[n], `log_diag` f[n], `factor` f[n, rank].
    Cost: n (rank + 2) parameters, O(n rank²) a draw and a density. Use it where FullRank has too many parameters and a
    few directions hold most of the correlation.

    Reference: Ong, Nott and Smith (2018), "Gaussian variational approximation with a factor covariance structure".
    """

    def __init__(self, model: Program, data: Mapping[str, Any], rank: SupportsIndex, **options: Any):
        """See `JointGuide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          rank: how many columns F has.
          **options: `addresses`, `frame`.
        """
        self.rank = whole_number(rank, "rank", "LowRank")
        super().__init__(model, data, **options)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        return super().options | {"rank": self.rank}

    def family(self, params: PyTree) -> dist.LowRankMultivariateNormal:
        """N(loc, diag(exp(2 log_diag)) + F Fᵀ)."""
        return dist.LowRankMultivariateNormal(params["loc"], params["factor"], jnp.exp(2 * params["log_diag"]))

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        n = self.latents.size
        factor = 0.1 * scale * jax.random.normal(key, (n, self.rank))
        return {"loc": self.center(u), "log_diag": jnp.full(n, jnp.log(scale)), "factor": factor}


class Mixture(JointGuide):
    """A mixture of Gaussians with diagonal covariances, in unconstrained coordinates.

    u ~ Σ_k softmax(logits)_k N(loc_k, diag(exp(2 log_scale_k))).

    Its draws have implicit derivatives, in the weights too (`ImplicitReparam`).
    Parameters: `logits` f[K], `loc` f[K, n], `log_scale` f[K, n].
    Cost: K densities a draw, and n K distribution functions for the derivative. Use it for several modes, or skew that
    no Gaussian has; the components begin at random places, and find modes near these.

    Reference: Graves (2016), "Stochastic backpropagation through mixture density distributions".
    """

    def __init__(self, model: Program, data: Mapping[str, Any], num_components: SupportsIndex, **options: Any):
        """See `JointGuide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          num_components: K.
          **options: `addresses`, `frame`.
        """
        self.num_components = whole_number(num_components, "num_components", "Mixture")
        super().__init__(model, data, **options)

    estimator = ImplicitReparam()

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        return super().options | {"num_components": self.num_components}

    def family(self, params: PyTree) -> dist.Distribution:
        """Σ_k softmax(logits)_k N(loc_k, diag(exp(2 log_scale_k)))."""
        components = dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=params["logits"]), components)

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        shape = (self.num_components, self.latents.size)
        loc = self.center(u) + scale * jax.random.normal(key, shape)
        return {"logits": jnp.zeros(shape[0]), "loc": loc, "log_scale": jnp.full(shape, jnp.log(scale))}
