"""Pathfinder: Gaussians from the inverse-Hessian estimates along the paths of a quasi-Newton optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax import lax

from vipl._checks import whole_number
from vipl._jax import Tracer
from vipl._types import Array, ArrayLike, Float, PRNGKeyArray, PyTree
from vipl.errors import ChoiceError
from vipl.estimators import LeaveOneOut, Score
from vipl.gen import Program
from vipl.gen._choices import Address, nest
from vipl.guides._guide import Start
from vipl.guides._joint import JointGuide, gaussian
from vipl.guides._once import run_once
from vipl.ir.keys import key_or_first


class Pathfinder(JointGuide):
    """An equal mixture of Gaussians, one for each path of an optimizer, in unconstrained coordinates.

    u ~ (1/K) Σ_k N(μ_k, H_k),   μ_k = θ_k + H_k ∇ log p(θ_k).

    `init` runs L-BFGS from K starts. Along each path it makes a Gaussian at every point θ from the inverse-Hessian
    estimate H of the points before, and keeps the one with the highest evidence lower bound, by `num_draws` draws. With
    `vipl.infer` that is all of the fit; `posterior.improve(key, n).sample(key, m)` are the draws that are resampled by
    Pareto-smoothed weights, which also weigh the modes that different paths found. The weights have the density of the
    mixture, not that of the path a draw is from. `posterior.improve(key).sample(key, 1)` is a start for other fits.

    Parameters: `loc` f[K, n], `scale_tril` f[K, n, n].
    Cost: `num_steps` gradients a path, and `num_draws` densities and O(memory n²) operations a step. Use it as a quick
    answer, for starts, and where there may be several modes. Its parameters are found, not learned: gradients of them
    are those of `Score(LeaveOneOut())`.

    Reference: Zhang, Carpenter, Gelman and Vehtari (2022), "Pathfinder: Parallel quasi-Newton variational inference",
    Algorithms 1 to 4; Gilbert and Lemaréchal (1989), section 3, for the diagonal of H.
    """

    estimator = Score(LeaveOneOut())

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        num_paths: SupportsIndex = 4,
        *,
        num_steps: SupportsIndex = 100,
        num_draws: SupportsIndex = 5,
        memory: SupportsIndex = 6,
        **options: Any,
    ):
        """See `JointGuide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          num_paths: K.
          num_steps: the steps of L-BFGS on each path.
          num_draws: of each Gaussian, for its bound.
          memory: how many steps before a point make its inverse-Hessian estimate.
          **options: `addresses`, `frame`.
        """
        self.num_paths, self.num_steps, self.num_draws, self.memory = (
            whole_number(x, name, "Pathfinder")
            for x, name in (
                (num_paths, "num_paths"),
                (num_steps, "num_steps"),
                (num_draws, "num_draws"),
                (memory, "memory"),
            )
        )
        super().__init__(model, data, **options)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        own = ("num_paths", "num_steps", "num_draws", "memory")
        return super().options | {name: getattr(self, name) for name in own}

    def family(self, params: PyTree) -> dist.Distribution:
        """The mixture of some parameters."""
        components = gaussian(params["loc"], params["scale_tril"])
        return dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(self.num_paths)), components)

    def init(
        self, key: PRNGKeyArray | None = None, *, start: Start = None, scale: Float[ArrayLike, ""] = 0.1
    ) -> PyTree:
        """The parameters that the paths find; see `Guide.init`.

        Args:
          key: PRNG key, of the starts and of the draws.
          start: the first path begins there; the others beside it, moved by noise of deviation `scale`, where it is
            choices, "zero" or "prior"; else at uniform points.
          scale: see `start`.

        Raises:
          ChoiceError: the density is not finite at the first start; or no path has a Gaussian with a finite bound.
        """
        the_key = key_or_first(key)
        keys = jax.random.split(the_key, self.num_paths)
        near = isinstance(start, Mapping) or start in ("zero", "prior")
        first = self.latents.join(self.start(keys[0], start))
        noise = scale * jax.random.normal(the_key, (self.num_paths, self.latents.size))
        starts = [first] + [
            first + e if near else self.latents.join(self._uniform(k)) for k, e in zip(keys[1:], noise[1:], strict=True)
        ]
        found = run_once("paths", _paths, (self,), (jnp.stack(starts), keys))
        if not isinstance(found.bound, Tracer) and not jnp.any(jnp.isfinite(found.bound)):
            raise ChoiceError(
                "no path of Pathfinder has a Gaussian with a finite bound.",
                at=f"init of {self!r}",
                got=f"bounds {found.bound}",
                expected="a finite bound along one path",
                fix="pass start={...} near a mode; or use FullRank",
            )
        best = jnp.argmax(found.bound)  # it stands in for paths that lead nowhere
        keep = jnp.where(jnp.isfinite(found.bound), jnp.arange(self.num_paths), best)
        loc, scale_tril = found.loc[keep], found.scale_tril[keep]
        frame = self.frame
        if frame is not None:
            loc = jax.vmap(lambda u: self.center(self.latents.split(u)))(loc)
            scale_tril = jax.vmap(lambda s: jax.scipy.linalg.solve_triangular(frame[1], s, lower=True))(scale_tril)
        return {"loc": loc, "scale_tril": scale_tril}

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        return self.init(key, start=nest(self.latents.constrain(u)[0]), scale=scale)

    def _shapes(self) -> PyTree:
        n = self.latents.size
        array = functools.partial(jax.ShapeDtypeStruct, dtype=self.latents.join(self._zero()).dtype)
        return {"loc": array((self.num_paths, n)), "scale_tril": array((self.num_paths, n, n))}

    def _path(self, start: Float[Array, " n"], key: PRNGKeyArray) -> Found:
        density = lambda u: self.latents.log_density(self.latents.split(u))  # noqa: E731
        points, gradients = climb(density, start, self.num_steps, self.memory)
        inverses = inverse_hessians(points, gradients, self.memory)
        noise = jax.random.normal(key, (self.num_draws, start.shape[0]), start.dtype)  # the same at every point

        def at(x: tuple[Array, Array, Array]) -> Found:
            point, gradient, inverse = x
            scale_tril = jnp.linalg.cholesky(inverse)
            loc = point + inverse @ gradient
            log_q = gaussian(loc, scale_tril).log_prob
            draws = loc + noise @ scale_tril.T
            bound = jnp.mean(jax.vmap(lambda u: density(u) - log_q(u))(draws))
            return Found(loc, scale_tril, jnp.where(jnp.isfinite(bound), bound, -jnp.inf))

        every = lax.map(at, (points, gradients, inverses))
        return jax.tree.map(lambda x: x[jnp.argmax(every.bound)], every)


def _paths(guide: Pathfinder, starts: Float[Array, "paths n"], keys: PRNGKeyArray) -> Found:
    return lax.map(lambda x: guide._path(x[0], x[1]), (starts, keys))


class Found(NamedTuple):
    """A Gaussian of a path.

    Attributes:
      loc: f[n], the mean.
      scale_tril: f[n, n], the factor of its covariance.
      bound: f[], the estimate of its bound; -inf where that is not finite.
    """

    loc: Array
    scale_tril: Array
    bound: Array


def climb(
    log_density: Callable[[Float[Array, " n"]], Float[Array, ""]],
    start: Float[Array, " n"],
    num_steps: int,
    memory: int,
) -> tuple[Float[Array, "steps+1 n"], Float[Array, "steps+1 n"]]:
    """The points of L-BFGS from a start, the start first, and the gradients of the log density there."""
    loss = lambda u: -log_density(u)  # noqa: E731
    optimizer = optax.lbfgs(memory_size=memory)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], tuple[Array, Array]]:
        u, state = carry
        value, gradient = value_and_grad(u, state=state)
        moves, after = optimizer.update(gradient, state, u, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(u, moves), after), (u, -gradient)  # type: ignore[return-value]

    _, found = lax.scan(step, (start, optimizer.init(start)), None, length=num_steps + 1)
    return found


def inverse_hessians(
    points: Float[Array, "steps n"], gradients: Float[Array, "steps n"], memory: int
) -> Float[Array, "steps n n"]:
    """At each point an estimate of the inverse of the negative Hessian, from the steps before it.

    H = (I - s zᵀ / sᵀz) H (I - z sᵀ / sᵀz) + s sᵀ / sᵀz for the last `memory` steps, the oldest first, with s and -z
    the differences of points and gradients, from a diagonal of its own. Steps without positive curvature do not count,
    nor steps of which sᵀz, about their squared length in posterior sds, is that of rounding.

    Reference: Zhang et al. (2022), Algorithm 3 and eq. (4), here without the compact form.
    """
    s, z = jnp.diff(points, axis=0), -jnp.diff(gradients, axis=0)
    n, rounding = points.shape[1], float(jnp.finfo(points.dtype).eps) ** (2 / 3)
    counts = jnp.sum(s * z, 1) > jnp.maximum(1e-12 * jnp.sum(z * z, 1), rounding)
    before = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(counts)])  # how many steps that count are before a point

    def diagonal(alpha: Array, x: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        s, z, count = x
        a, b, c = z @ (alpha * z), jnp.where(count, z @ s, 1.0), jnp.where(count, s @ (s / alpha), 1.0)
        inverse = a / (b * alpha) + z**2 / b - a * s**2 / (b * c * alpha**2)
        after = jnp.where(count, 1 / jnp.where(count, inverse, 1.0), alpha)
        return after, after

    first = jnp.ones(n, points.dtype)
    _, alphas = lax.scan(diagonal, first, (s, z, counts))

    order = jnp.argsort(~counts, stable=True)
    s, z = s[order], z[order]

    def at(x: tuple[Array, Array]) -> Array:
        number, alpha = x

        def update(k: int, h: Array) -> Array:
            i = number - memory + k
            j, count = jnp.maximum(i, 0), i >= 0
            rho = 1 / jnp.where(count, s[j] @ z[j], 1.0)
            left = jnp.eye(n, dtype=h.dtype) - rho * jnp.outer(s[j], z[j])
            return jnp.where(count, left @ h @ left.T + rho * jnp.outer(s[j], s[j]), h)

        h = lax.fori_loop(0, memory, update, jnp.diag(alpha))
        return (h + h.T) / 2

    return lax.map(at, (before, jnp.concatenate([first[None], alphas])))
