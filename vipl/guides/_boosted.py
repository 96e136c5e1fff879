"""Boosted guides: mixtures of Gaussians that are grown one component at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

from vipl._checks import whole_number
from vipl._jax import Tracer
from vipl._types import Array, ArrayLike, Float, PRNGKeyArray, PyTree
from vipl.errors import ChoiceError
from vipl.estimators import LeaveOneOut, Score
from vipl.gen import Program
from vipl.gen._choices import Address, nest
from vipl.guides._gaussian import fit_gaussian, lower_triangular
from vipl.guides._guide import Start
from vipl.guides._joint import JointGuide, in_frame
from vipl.ir.keys import key_or_first

_POWERS = (0.25, 0.5, 0.75, 1.0)
"""The λ of the residuals whose best points are tried as starts."""
_CANDIDATES = 256
"""Among how many points these are sought."""
_DRAWS = 256
"""Pairs of draws from each component that estimate a bound."""
_WEIGHINGS = 100
"""Steps of the weights, which are computed alone."""
_LEAST = -14.0
"""The log weight of a component that adds nothing."""


class Grown(NamedTuple):
    """A mixture in the coordinates u, with places for components to come.

    Attributes:
      log_weights: f[K]; -inf for a component that is not there yet.
      loc: f[K, n].
      scale_tril: f[K, n, n].
    """

    log_weights: Float[Array, " K"]
    loc: Float[Array, "K n"]
    scale_tril: Float[Array, "K n n"]

    def log_parts(self, u: Float[Array, " n"]) -> Float[Array, " K"]:
        """Of each component, log w_k N(u; loc_k, L_k L_kᵀ)."""
        normal = dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)
        return self.log_weights + normal.log_prob(u)

    def log_prob(self, u: Float[Array, " n"]) -> Float[Array, ""]:
        """The log density."""
        return jax.nn.logsumexp(self.log_parts(u))

    def put(self, k: int, loc: Array, scale_tril: Array) -> Grown:
        """With another k-th component."""
        return self._replace(loc=self.loc.at[k].set(loc), scale_tril=self.scale_tril.at[k].set(scale_tril))


class Boosted(JointGuide):
    """A mixture of Gaussians with any covariance that is grown one component at a time, in unconstrained coordinates.

    u ~ q_K = Σ_k w_k N(loc_k, L_k L_kᵀ).

    `init` fits the first component as `FullRank` is fitted. Then, K - 1 times,

        1. starts away from the mass: of 256 points (draws of q three times as wide, and uniform on [-2, 2]) the best
           of the residuals log p - λ log q, for λ of 1/4, 1/2, 3/4 and 1;
        2. a component s from each, by natural gradients of E_s[log p - log q + log w_s s] + H[s], with log q and s in
           the bracket held at the mixture that has s at its start: the bound of the mixture in s is at least that;
        3. weights anew: w_k ← w_k exp(E_k[log p - log q]) / Σ, a hundred times, by 512 draws of each component; the
           start with the best bound of the mixture is kept;
        4. all components anew by 2., each for the others as they are, and weights by 3., if the bound grows.

    The bound on these draws does not decrease with K: a component with which it would has a weight of 1e-6. With
    `vipl.infer` that is all of the fit, and `report.values` are the K bounds. `grow(key, params)` adds components.

    Parameters: `logits` f[K], `loc` f[K, n], `scale_tril` f[K, n, n]. Density: exact.
    Cost: some 4 + K fits of a Gaussian for the K-th component, of Hessians in n coordinates. Use it for several modes,
    and for skew and curvature in a few dozen coordinates; the components' number may grow until the bound stays. Its
    parameters are found, not learned: gradients of them are those of `Score(LeaveOneOut())`.

    Reference: Guo et al. (2016), "Boosting variational inference", Algorithm 1; Miller, Foti and Adams (2017),
    "Variational boosting", section 3; Locatello et al. (2018), "Boosting black box variational inference", eq. (7),
    for the residual; Arenz, Zhong and Neumann (2018), "Efficient gradient-free variational inference using policy
    search", section 3, for 2. and 3.
    """

    estimator = Score(LeaveOneOut())

    def __init__(self, model: Program, data: Mapping[str, Any], num_components: SupportsIndex = 3, **options: Any):
        """See `JointGuide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          num_components: K.
          **options: `addresses`, `frame`.
        """
        self.num_components = whole_number(num_components, "num_components", "Boosted")
        super().__init__(model, data, **options)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        return super().options | {"num_components": self.num_components}

    def family(self, params: PyTree) -> dist.Distribution:
        """The mixture of some parameters."""
        components = dist.MultivariateNormal(params["loc"], scale_tril=params["scale_tril"])
        return dist.MixtureSameFamily(dist.Categorical(logits=params["logits"]), components)

    def init(
        self, key: PRNGKeyArray | None = None, *, start: Start = None, scale: Float[ArrayLike, ""] = 0.1
    ) -> PyTree:
        """The parameters that are found; see `Guide.init`.

        Args:
          key: PRNG key, of all draws.
          start: where the first component begins.
          scale: nothing; each component finds its own.

        Raises:
          ChoiceError: the density is not finite at the start; or the first component has no finite bound.
        """
        del scale
        return self.find(key_or_first(key), start)[0]

    def find(self, key: PRNGKeyArray, start: Start = None) -> tuple[PyTree, Float[Array, " K"]]:
        """The parameters, and the bound with each number of components; see `init`."""
        first, rest = jax.random.split(key)
        begin = self.latents.join(self.start(first, start))
        n, k = begin.shape[0], self.num_components
        log_weights = jnp.full(k, -jnp.inf, begin.dtype).at[0].set(0.0)
        alone = Grown(log_weights, jnp.tile(begin, (k, 1)), jnp.tile(jnp.eye(n, dtype=begin.dtype), (k, 1, 1)))
        fitted = self._fitted(alone, jnp.int32(0), begin, first)
        q = Grown(log_weights, *(jnp.tile(x, (k, *[1] * x.ndim)) for x in fitted))
        noise = _noise(first, n, begin.dtype)
        bound = self._weighed(q, noise)[1]
        if not isinstance(bound, Tracer) and not jnp.isfinite(bound):
            raise ChoiceError(
                "the first component of a boosted guide has no finite bound.",
                at=f"init of {self!r}",
                got=f"a bound of {float(bound)}",
                expected="a Gaussian at whose draws the density is finite",
                fix="pass start={...} near a mode; or narrow the prior",
            )
        return self._more(q, bound, 1, noise, rest)

    def grow(self, key: PRNGKeyArray, params: PyTree, num: SupportsIndex = 1) -> tuple[Boosted, PyTree]:
        """A guide with more components, and its parameters; those of `params` are the first, fitted anew.

        Args:
          key: PRNG key.
          params: of this guide.
          num: how many more.

        Raises:
          ProgramError: the parameters are not this guide's, or the number is not a positive integer.
        """
        self._check_params(params)
        num = whole_number(num, "num", "Boosted.grow")
        guide = self.with_options(num_components=self.num_components + num)
        assert isinstance(guide, Boosted)
        loc, scale_tril = params["loc"], params["scale_tril"]
        if self.frame is not None:
            place, tril = self.frame
            loc, scale_tril = place + loc @ tril.T, tril @ scale_tril
        padded = lambda x: jnp.concatenate([x, jnp.tile(x[:1], (num, *[1] * (x.ndim - 1)))])  # noqa: E731
        log_weights = jnp.concatenate([jax.nn.log_softmax(params["logits"]), jnp.full(num, -jnp.inf, loc.dtype)])
        q = Grown(log_weights, padded(loc), padded(scale_tril))
        noise = _noise(key, loc.shape[1], loc.dtype)
        q, bound = guide._weighed(q, noise)
        return guide, guide._more(q, bound, self.num_components, noise, key)[0]

    def _more(
        self, q: Grown, bound: Float[Array, ""], there: int, noise: Float[Array, "draws n"], key: PRNGKeyArray
    ) -> tuple[PyTree, Float[Array, " K"]]:
        """Parameters with all components, and the bounds."""
        bounds = [bound]
        for k in range(there, self.num_components):
            q, bound = self._with_one_more(q, k, noise, jax.random.fold_in(key, k))
            bounds.append(bound)
        loc, scale_tril, frame = q.loc, q.scale_tril, self.frame
        if frame is not None:
            loc = jax.vmap(lambda u: in_frame(u, frame))(loc)
            scale_tril = jax.vmap(lambda s: jax.scipy.linalg.solve_triangular(frame[1], s, lower=True))(scale_tril)
        return {"logits": q.log_weights, "loc": loc, "scale_tril": scale_tril}, jnp.stack(bounds)

    def _with_one_more(
        self, q: Grown, k: int, noise: Float[Array, "draws n"], key: PRNGKeyArray
    ) -> tuple[Grown, Float[Array, ""]]:
        """With a k-th component, at the best of the starts, and all others fitted anew where that helps; its bound."""
        best = self._weighed(q._replace(log_weights=q.log_weights.at[k].set(_LEAST)), noise, 0)
        for start in self._starts(q, key):
            nearest = jnp.argmax(q.log_parts(start))
            tried = q._replace(log_weights=jnp.where(jnp.arange(q.loc.shape[0]) == k, -1.0, q.log_weights))
            tried = tried.put(k, start, q.scale_tril[nearest])
            tried = tried.put(k, *self._fitted(tried, jnp.int32(k), start, key))
            best = _better(best, self._weighed(tried, noise))
        anew = best[0]
        for j in range(k + 1):
            fitted = anew.put(j, *self._fitted(anew, jnp.int32(j), anew.loc[j], key))
            anew = jax.tree.map(functools.partial(jnp.where, anew.log_weights[j] > _LEAST + 1), fitted, anew)
        return _better(best, self._weighed(anew, noise))

    def _density(self, u: Float[Array, " n"]) -> Float[Array, ""]:
        return self.latents.log_density(self.latents.split(u))

    @functools.cached_property
    def _fitted(self) -> Callable[[Grown, Array, Array, PRNGKeyArray], tuple[Array, Array]]:
        """The k-th component for the others as they are, from a place; its mean and factor."""

        def fitted(q: Grown, k: Array, start: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
            def target(u: Float[Array, " n"]) -> Float[Array, ""]:
                parts = q.log_parts(u)
                return self._density(u) + parts[k] - jax.nn.logsumexp(parts)

            found = fit_gaussian(target, start, key, max_steps=200)
            return found.loc, lower_triangular(found.factor)

        return jax.jit(fitted)

    @functools.cached_property
    def _starts(self) -> Callable[[Grown, PRNGKeyArray], Float[Array, "starts n"]]:
        """The best points of the residuals."""

        def starts(q: Grown, key: PRNGKeyArray) -> Array:
            keys, half = jax.random.split(key, 3), _CANDIDATES // 2
            n = q.loc.shape[1]
            index = jax.random.categorical(keys[0], q.log_weights, shape=(half,))
            noise = jax.random.normal(keys[1], (half, n), q.loc.dtype)
            wide = q.loc[index] + 3.0 * jnp.einsum("sij,sj->si", q.scale_tril[index], noise)
            uniform = jax.random.uniform(keys[2], (half, n), q.loc.dtype, -2.0, 2.0)
            points = jnp.concatenate([wide, uniform])
            log_p = jax.vmap(self._density)(points)
            log_q = jax.vmap(q.log_prob)(points)
            powers = jnp.asarray(_POWERS, q.loc.dtype)[:, None]
            residuals = jnp.where(jnp.isfinite(log_p), log_p - powers * log_q, -jnp.inf)
            return points[jnp.argmax(residuals, axis=1)]

        return jax.jit(starts)

    @functools.cached_property
    def _weighed(self) -> Callable[..., tuple[Grown, Float[Array, ""]]]:
        """The mixture with new weights, after some steps of these, and its bound."""

        def weighed(q: Grown, noise: Float[Array, "draws n"], steps: int = _WEIGHINGS) -> tuple[Grown, Array]:
            draws = q.loc[:, None] + jnp.einsum("kij,sj->ksi", q.scale_tril, noise)
            log_p = jax.vmap(jax.vmap(self._density))(draws)
            there = q.log_weights > -jnp.inf
            flat = q._replace(log_weights=jnp.zeros_like(q.log_weights))
            parts = jax.vmap(jax.vmap(flat.log_parts))(draws)  # [k, draw, component]

            def gains(log_weights: Array) -> Array:
                log_q = jax.nn.logsumexp(parts + log_weights, axis=-1)
                return jnp.where(there, jnp.mean(log_p - log_q, axis=1), 0.0)

            def step(_: int, log_weights: Array) -> Array:
                moved = jax.nn.log_softmax(log_weights + gains(log_weights))
                return jnp.where(there, jnp.maximum(moved, _LEAST), -jnp.inf)

            log_weights = lax.fori_loop(0, steps, step, jax.nn.log_softmax(q.log_weights))
            log_weights = jax.nn.log_softmax(log_weights)
            bound = jnp.sum(jnp.where(there, jnp.exp(log_weights) * gains(log_weights), 0.0))
            return q._replace(log_weights=log_weights), bound

        return jax.jit(weighed, static_argnums=2)

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        return self.init(key, start=nest(self.latents.constrain(u)[0]), scale=scale)

    def _shapes(self) -> PyTree:
        n, k = self.latents.size, self.num_components
        array = functools.partial(jax.ShapeDtypeStruct, dtype=self.latents.join(self._zero()).dtype)
        return {"logits": array((k,)), "loc": array((k, n)), "scale_tril": array((k, n, n))}


def _noise(key: PRNGKeyArray, n: int, dtype: np.dtype) -> Float[Array, "draws n"]:
    e = jax.random.normal(key, (_DRAWS, n), dtype)
    return jnp.concatenate([e, -e])


def _better(one: tuple[Grown, Array], other: tuple[Grown, Array]) -> tuple[Grown, Array]:
    """The mixture with the greater bound; the first, where the other's is not finite."""
    keep = jnp.isfinite(other[1]) & (other[1] > one[1])
    return jax.tree.map(functools.partial(jnp.where, keep), other, one)
