"""A draw and its log density, made together.

A draw in floating point is rounded: Beta(2, 0.1) gives 1 in a third of all draws in float32, Gamma(0.02) gives 0. A
density that is evaluated at the rounded value is off by nats, or infinite. So a draw keeps its *coordinates*, the
numbers that its value is made of (log x of a Gamma, logit x of a Beta, what a transform was applied to), and its log
density is computed from them:

    point = draw(d, key);   log_density(d, point) = log p(x) of the number x before it was rounded.

The value itself lies inside the support: where rounding takes it to an edge, which has probability zero, it is the
nearest number inside. A density of another distribution there is finite.

Derivatives. In `log_density(d, draw(d, key))` all moves: it is d/dθ of log p_θ(x_θ). `standing(d, point)` is the same
point with its value held still, so that the derivative is that of log p_θ at x. `log_density_along(d, point)` holds the
parameters still, and lets the value move.

A family without coordinates has its density computed from its value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy.typing as npt
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import gammaln
from numpyro.distributions import Distribution, constraints, transforms
from numpyro.distributions.transforms import Transform

from vipl._types import Array, ArrayLike, Float, PRNGKeyArray, Shaped
from vipl.distributions import _gammas
from vipl.distributions import _special_functions as special
from vipl.distributions._special_functions import inexact

Bounds = tuple[ArrayLike, ArrayLike]


class Point(NamedTuple):
    """One draw.

    Attributes:
      value: [...], inside the support.
      coordinates: what the value was made of, with the batch shape in front; None: the value itself.
    """

    value: Shaped[Array, "*shape"]
    coordinates: Any = None


class Steps(NamedTuple):
    """The coordinates of a transformed draw.

    Attributes:
      base: the point of the base distribution.
      images: what each transform made of it, inside its range.
      logs: of a positive number whose logarithm is known, that; otherwise None.
      extra: what transforms keep of their own evaluation, for their Jacobians.
    """

    base: Point
    images: tuple[Array, ...]
    logs: tuple[Any, ...]
    extra: tuple[object, ...]


Coordinates = Array | Steps
"""What a draw was made of: log x, logit x, or the steps of a transformed draw."""


def draw(d: Distribution, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Point:
    """Draws a point; differentiable in the parameters where the distribution is reparametrized."""
    if has_coordinates(d):
        return _draw(d, key, sample_shape)
    x = d.sample(key, sample_shape) if sample_shape else d.sample(key)
    return Point(in_support(d, x))


def has_coordinates(d: Distribution) -> bool:
    """Whether draws of a distribution keep more than their value."""
    d = innermost(d)
    cls = next((c for c in _FAMILIES if isinstance(d, c)), None)
    if cls is None or type(d).sample is not cls.sample:
        return False
    return type(d).log_prob in (cls.log_prob, *(stable.log_prob for stable in _FAMILIES[cls]))


def innermost(d: Distribution) -> Distribution:
    """The distribution without `to_event`, `expand` and masks."""
    while isinstance(d, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        d = d.base_dist
    return d


# with the classes of `_gammas` that compute the same density from a value
_FAMILIES = {
    dist.Gamma: (_gammas.Gamma,),
    dist.Beta: (_gammas.Beta,),
    dist.Dirichlet: (_gammas.Dirichlet,),
    dist.TransformedDistribution: (_gammas.InverseGamma,),
}


def log_density(d: Any, point: Point) -> Float[Array, "*batch"]:
    """f[batch_shape], the log density of a point before its value was rounded; of a masked one 0."""
    if point.coordinates is None:
        return d.log_prob(point.value)
    return _log_density(d, point.coordinates)


def total(log_prob: Float[Array, "..."], ndim: int = 0) -> Float[Array, "..."]:
    """f[...], the sum of log densities over all axes but the first `ndim`, in the default precision."""
    axes = tuple(range(ndim, jnp.ndim(log_prob))) if ndim else None
    return lax.convert_element_type(jnp.sum(log_prob, axis=axes), float)


def standing(d: Distribution, point: Point) -> Point:
    """The same point, whose value has no derivative; its coordinates move with the parameters so that it has none."""
    value, coordinates = lax.stop_gradient(tuple(point))
    return Point(value, _placed(d, coordinates, None))


def log_density_along(d: Any, point: Point) -> Float[Array, "*batch"]:
    """f[batch_shape], the log density whose derivative is that in the value alone: the parameters stand still."""
    d = jax.tree.map(_still, d)
    if point.coordinates is None:
        return d.log_prob(point.value)
    return _log_density(d, _placed(d, point.coordinates, None))


def _still(x: Any) -> Any:
    return lax.stop_gradient(x) if isinstance(x, jax.Array) else x


# --- numbers inside an interval ---------------------------------------------------------------------------------


@jax.custom_jvp
def inside(x: Float[Array, "*shape"], low: ArrayLike, high: ArrayLike) -> Float[Array, "*shape"]:
    """The nearest number between two bounds that is neither; its derivative is that of `x`. NaN stays NaN."""
    info = jnp.finfo(x.dtype)
    low, high = (jnp.asarray(b, x.dtype) for b in (low, high))
    first = jnp.maximum(jnp.nextafter(low, jnp.inf), low + info.tiny)
    last = jnp.minimum(jnp.nextafter(high, -jnp.inf), high - info.tiny)
    return jnp.clip(x, first, last)


@inside.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    return inside(*primals), tangents[0]


@jax.custom_jvp
def exp_inside(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """exp(y), a positive number; the derivative of its logarithm is that of y, also where it is rounded."""
    info = jnp.finfo(y.dtype)
    return jnp.clip(jnp.exp(y), info.tiny, info.max)


@exp_inside.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    x = exp_inside(*primals)
    return x, x * tangents[0]


@jax.custom_jvp
def sigmoid_inside(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / (1 + exp(-y)), between 0 and 1; the derivative of its logit is that of y, also where it is rounded."""
    info = jnp.finfo(y.dtype)
    return jnp.clip(jax.nn.sigmoid(y), info.tiny, 1 - info.epsneg)


@sigmoid_inside.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    x = sigmoid_inside(*primals)
    return x, x * (1 - x) * tangents[0]


@jax.custom_jvp
def softplus_inside(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + exp(y)), a positive number; where it is rounded, the derivative of its logarithm is that of y."""
    return jnp.clip(jax.nn.softplus(y), jnp.finfo(y.dtype).tiny)


@softplus_inside.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    y, x = primals[0], softplus_inside(*primals)
    return x, jnp.maximum(jax.nn.sigmoid(y), jnp.where(y < 0, x / 2, 0)) * tangents[0]


def _follow(value: Array, path: Array) -> Array:
    """The first argument, with the derivative of the second."""
    return _followed(value, path) if jnp.issubdtype(value.dtype, jnp.inexact) else value


@jax.custom_jvp
def _followed(value: Array, path: Array) -> Array:
    del path
    return value


@_followed.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    return _followed(*primals), tangents[1]


# --- any distribution: its value alone ----------------------------------------------------------------------------


@functools.singledispatch
def _draw(d: Distribution, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Point:
    """Draws a point of a family that has coordinates."""
    raise TypeError(f"{type(d).__name__} has no coordinates")


@functools.singledispatch
def _log_density(d: Distribution, coordinates: Coordinates) -> Float[Array, "*batch"]:
    """The log density at coordinates."""
    raise TypeError(f"{type(d).__name__} has no coordinates")


@functools.singledispatch
def _coordinates_of(d: Distribution, value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The coordinates as a function of the value, which lies inside the support."""
    raise TypeError(f"{type(d).__name__} has no coordinates")


def _placed(d: Distribution, coordinates: Coordinates | None, value: Array | None) -> Coordinates | None:
    """The same coordinates with other derivatives: those of `value`, the parameters being those of `d`.

    A value that is None moves as the coordinates do.
    """
    d = innermost(d)
    if coordinates is None:
        return None
    if isinstance(coordinates, Steps):
        return _placed_steps(d, coordinates, value)  # type: ignore[arg-type]
    return coordinates if value is None else _follow(coordinates, _coordinates_of(d, value))


def in_support(d: Distribution, x: Any) -> Shaped[Array, "*shape"]:
    """The value, inside a support that is an interval; bounds that are arrays belong to the parts of a batch."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating) or _has_atoms(d):
        return x
    bounds = _bounds(d)
    if bounds is None or (innermost(d).event_shape and any(map(jnp.ndim, bounds))):
        return x
    return inside(jnp.asarray(x), *bounds)


def _has_atoms(d: Distribution) -> bool:
    """Whether a point may have a probability of its own, an edge among them."""
    name = type(d).__name__
    parts = [v for v in vars(d).values() if isinstance(v, dist.Distribution)]
    parts += getattr(d, "component_distributions", None) or []
    return any(s in name for s in ("Delta", "ZeroInflated", "Hurdle", "Censored", "Improper")) or any(
        map(_has_atoms, parts)
    )


def _bounds(d: Distribution) -> Bounds | None:
    """The bounds of a support that is an interval of numbers; they broadcast to the value."""
    if isinstance(d, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        return _bounds(d.base_dist)
    if not isinstance(d, dist.TransformedDistribution) or isinstance(d, dist.FoldedDistribution):
        return _interval(getattr(d, "support", None))
    bounds = _bounds(d.base_dist)
    for t in _parts(d.transforms):
        if isinstance(t, transforms.AffineTransform):
            if bounds is not None:
                ends = [jnp.asarray(t(jnp.asarray(b, float))) for b in bounds]
                bounds = (jnp.minimum(*ends), jnp.maximum(*ends))
        elif isinstance(t, transforms.IdentityTransform):
            pass
        else:
            bounds = _interval(t.codomain)
    return bounds


def _interval(s: constraints.Constraint | None) -> Bounds | None:
    if isinstance(s, constraints.independent):
        return _interval(s.base_constraint)
    if isinstance(s, type(constraints.simplex)):
        return 0.0, jnp.inf
    if isinstance(s, (constraints.greater_than, constraints.less_than, constraints.interval)):
        return getattr(s, "lower_bound", -jnp.inf), getattr(s, "upper_bound", jnp.inf)
    return None


# --- wrappers -----------------------------------------------------------------------------------------------------


@_draw.register(dist.Independent)
@_draw.register(dist.MaskedDistribution)
def _(d: dist.Independent | dist.MaskedDistribution, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Point:
    return draw(d.base_dist, key, sample_shape)


@_draw.register
def _(d: dist.ExpandedDistribution, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Point:
    expand: Any = d._sample  # takes and returns pairs of a value and what goes with it
    return Point(*expand(lambda key, shape: draw(d.base_dist, key, shape), key, sample_shape))


@_log_density.register
def _(d: dist.Independent, coordinates: Coordinates) -> Array:
    log_p = _log_density(d.base_dist, coordinates)
    return jnp.sum(log_p, axis=tuple(range(-d.reinterpreted_batch_ndims, 0)))


@_log_density.register
def _(d: dist.ExpandedDistribution, coordinates: Coordinates) -> Array:
    return jnp.broadcast_to(_log_density(d.base_dist, coordinates), d.batch_shape)


@_log_density.register
def _(d: dist.MaskedDistribution, coordinates: Coordinates) -> Array:
    return jnp.where(d._mask, _log_density(d.base_dist, coordinates), 0.0)


# --- Gamma: log x;  Beta: logit x;  Dirichlet: log x ----------------------------------------------------------------


def log_gamma_draw(key: PRNGKeyArray, concentration: npt.ArrayLike, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Log x for x ~ Gamma(α, 1), with the derivative that stands still in the distribution function.

    Where x is so small that the distribution function is x^α / Γ(α + 1) to the last digit, the derivative is that of
    log x = (log u + log Γ(α + 1)) / α. (JAX's own is that at the smallest number where x is smaller still.)
    """
    a = jnp.broadcast_to(inexact(concentration), shape)
    y = jax.random.loggamma(key, a, dtype=a.dtype)
    fixed = lax.stop_gradient(y)
    log_u = lax.stop_gradient(a * fixed - gammaln(a + 1))
    small = fixed < jnp.log(jnp.finfo(a.dtype).eps)
    return jnp.where(small, _follow(fixed, (log_u + gammaln(a + 1)) / a), jnp.where(small, 0, y))


@_draw.register
def _(d: dist.Gamma, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Point:
    y = log_gamma_draw(key, d.concentration, sample_shape + d.batch_shape) - jnp.log(inexact(d.rate))
    return Point(exp_inside(y), y)


@_log_density.register
def _(d: dist.Gamma, y: Array) -> Array:
    log_rate = jnp.log(inexact(d.rate))
    return log_rate + special.log_gamma(inexact(d.concentration), jnp.exp(y + log_rate), y + log_rate)


@_coordinates_of.register(dist.Gamma)
@_coordinates_of.register(dist.Dirichlet)
def _(d: Distribution, value: Array) -> Array:
    return jnp.log(value)


@_draw.register
def _(d: dist.Beta, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Point:
    shape = sample_shape + d.batch_shape
    a = jnp.stack(jnp.broadcast_arrays(inexact(d.concentration1), inexact(d.concentration0)), axis=-1)
    y = log_gamma_draw(key, a, (*shape, 2))
    y = y[..., 0] - y[..., 1]
    return Point(sigmoid_inside(y), y)


@_log_density.register
def _(d: dist.Beta, y: Array) -> Array:
    a = jnp.stack(jnp.broadcast_arrays(*map(inexact, (d.concentration1, d.concentration0))), axis=-1)
    y = jnp.stack([y, -y], axis=-1)
    return special.log_dirichlet(a, jax.nn.sigmoid(y), -jax.nn.softplus(-y))


@_coordinates_of.register
def _(d: dist.Beta, value: Array) -> Array:
    return jnp.log(value) - jnp.log1p(-value)


@_draw.register
def _(d: dist.Dirichlet, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Point:
    y = log_gamma_draw(key, d.concentration, sample_shape + d.batch_shape + d.event_shape)
    y = jax.nn.log_softmax(y, axis=-1)
    return Point(exp_inside(y), y)


@_log_density.register
def _(d: dist.Dirichlet, y: Array) -> Array:
    x = jnp.exp(y)
    return special.log_dirichlet(inexact(d.concentration), x, y, jnp.sum(x, axis=-1) - 1)


# --- transforms: what each of them was applied to -------------------------------------------------------------------


def _parts(found: Sequence[Transform]) -> list[Any]:
    """Transforms, with those that are composed taken apart."""
    return [p for t in found for p in (_parts(t.parts) if isinstance(t, transforms.ComposeTransform) else [t])]


_INSIDE = {
    transforms.ExpTransform: exp_inside,
    transforms.SigmoidTransform: sigmoid_inside,
    transforms.SoftplusTransform: softplus_inside,
}


def _apply(t: Any, x: Any, log_x: Any) -> tuple[Any, Any, Any]:
    """A transform's image, its logarithm if it is known, and what its Jacobian needs."""
    if isinstance(t, transforms.ExpTransform):
        return exp_inside(x), x, None
    if isinstance(t, transforms.PowerTransform) and log_x is not None:
        return exp_inside(t.exponent * log_x), t.exponent * log_x, None
    if type(t) in _INSIDE:
        return _INSIDE[type(t)](x), None, None
    y, extra = t.call_with_intermediates(x)
    return y, None, extra


@_draw.register
def _(d: dist.TransformedDistribution, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Point:
    base = draw(d.base_dist, key, sample_shape)
    x, log_x = jnp.asarray(base.value), _log_of(d.base_dist, base)
    images, logs, extras = [], [log_x], []
    for t in _parts(d.transforms):
        x, log_x, extra = _apply(t, x, log_x)
        images, logs, extras = [*images, x], [*logs, log_x], [*extras, extra]
    return Point(in_support(d, x), Steps(base, tuple(images), tuple(logs), tuple(extras)))


def transformed(d: dist.TransformedDistribution, x: Array) -> Array:
    """The images of values of the base distribution."""
    for t in _parts(d.transforms):
        x = _apply(t, x, None)[0]
    return x


def _log_of(d: Distribution, point: Point) -> Array | None:
    return point.coordinates if isinstance(innermost(d), dist.Gamma) else None


@_log_density.register
def _(d: dist.TransformedDistribution, steps: Steps) -> Array:
    event_dim, log_p = d.event_dim, jnp.zeros(())
    values = [steps.base.value, *steps.images]
    parts = _parts(d.transforms)
    for i, t in reversed(list(enumerate(parts))):
        if isinstance(t, transforms.PowerTransform) and steps.logs[i] is not None:
            slope = jnp.log(jnp.abs(t.exponent)) + (t.exponent - 1) * steps.logs[i]
        else:
            slope = t.log_abs_det_jacobian(values[i], values[i + 1], steps.extra[i])
        rest = event_dim - t.codomain.event_dim
        log_p = log_p - _sum_last(slope, rest)
        event_dim = t.domain.event_dim + rest
    return log_p + _sum_last(log_density(d.base_dist, steps.base), event_dim - d.base_dist.event_dim)


def _sum_last(x: Any, axes: int) -> Array:
    return jnp.sum(x, axis=tuple(range(-axes, 0))) if axes else x


def _placed_steps(d: dist.TransformedDistribution, steps: Steps, value: Array | None) -> Steps:
    """From the last image back to the base; above the last transform that has parameters all is as it was."""
    parts = _parts(d.transforms)
    values, logs, extras = [steps.base.value, *steps.images], list(steps.logs), list(steps.extra)
    if value is not None:
        values[-1], logs[-1] = value, None
    moved = value is not None
    for i, t in reversed(list(enumerate(parts))):
        moved = moved or any(map(is_parameter, jax.tree.leaves(t)))
        if moved:
            values[i] = _follow(values[i], _preimage(t, values[i + 1], values[i]))
            _, _, extras[i] = _apply(t, values[i], logs[i])
            if logs[i] is not None:
                logs[i] = _follow(logs[i], jnp.log(values[i]))
    base = Point(values[0], _placed(d.base_dist, steps.base.coordinates, values[0] if moved else None))
    return Steps(base, tuple(values[1:]), tuple(logs), tuple(extras))


def is_parameter(leaf: object) -> bool:
    """Whether a leaf of a distribution may carry a derivative."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _preimage(t: Any, y: Array, x: Array) -> Array:
    """A number whose derivative is that of the inverse of a transform at `y`, whose preimage is `x`."""
    try:
        return t.inv(y)
    except NotImplementedError:
        fixed = lax.stop_gradient(x)
        flat = fixed.reshape(-1, *fixed.shape[fixed.ndim - t.domain.event_dim :])
        size = math.prod(flat.shape[1:])
        slopes = jax.vmap(jax.jacobian(t))(flat).reshape(-1, size, size)
        step = jnp.linalg.solve(slopes, (t(fixed) - y).reshape(-1, size, 1))  # Newton's, whose derivative counts
        return fixed - step.reshape(fixed.shape)
