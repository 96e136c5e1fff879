"""Densities of sites, and the checks that a source is a distribution a site can hold."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import transforms as t

from vipl import _jax
from vipl._jax import ShapedArray
from vipl._types import Array, ArrayLike
from vipl.distributions._draws import draw, innermost, log_density, total
from vipl.distributions._flips import BernoulliLogits
from vipl.distributions._special_functions import floating, inexact
from vipl.errors import DistributionError, show_aval
from vipl.gen._equivalents import equivalent, library_of
from vipl.gen._supports import joins_zero, names_its_support, steps_of
from vipl.ir.partition import Skeleton
from vipl.ir.primitives import Site


@jax.tree_util.register_pytree_node_class
class Factor:
    """The source of `factor`: no value, a log weight as its log density."""

    has_rsample = True
    batch_shape = ()

    def __init__(self, log_weight: ArrayLike):
        """Keeps the log weight, f[...]; its sum counts."""
        self.log_weight = log_weight

    def tree_flatten(self) -> tuple[tuple[ArrayLike], None]:
        """Pytree interface."""
        return (self.log_weight,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[ArrayLike]) -> Factor:
        """Pytree interface."""
        return cls(*children)

    def sample(self, _: object) -> Array:
        """Nothing to draw."""
        return jnp.zeros((0,))

    def log_prob(self, _: object) -> Array:
        """The log weight."""
        return jnp.sum(self.log_weight)


def is_factor(site: Site) -> bool:
    """Says whether a site is a factor."""
    return site.distribution is not None and site.distribution.treedef == jax.tree.structure(Factor(0.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaledDistribution:
    """A distribution with a weight; made by `scaled`.

    Attributes:
      distribution: a NumPyro distribution.
      weight: f[].
    """

    distribution: Any
    weight: Any


class _NoSampler(Exception):
    """The distribution cannot be drawn."""


@functools.lru_cache(maxsize=4096)
def _value_aval(
    skeleton: Skeleton, avals: tuple[ShapedArray, ...], mode: Hashable
) -> tuple[jax.ShapeDtypeStruct, tuple[int, ...], tuple[int, ...]]:
    """Aval of a draw, shape of its log density, and the batch shape that the distribution claims."""
    del mode
    key = jax.eval_shape(lambda: jax.random.key(0))
    claimed: list[tuple[int, ...]] = []

    def both(key, *leaves):
        d = skeleton.combine(leaves)
        claimed.append(tuple(d.batch_shape))
        try:
            point = draw(d, key)
        except NotImplementedError as error:
            raise _NoSampler(str(error)) from error
        return point.value, log_density(d, point)

    value, log_prob = jax.eval_shape(both, key, *avals)
    return value, tuple(log_prob.shape), claimed[0]


def check_distribution(
    source: object, skeleton: Skeleton, leaves: Sequence[ArrayLike], at: str
) -> jax.ShapeDtypeStruct:
    """The aval of one draw; raises where the source is not a distribution with up-to-date shapes."""
    if not isinstance(source, (dist.Distribution, Factor)):
        raise _no_distribution(source, at)
    try:
        hash(skeleton)
    except TypeError:
        raise DistributionError(
            "a distribution holds something that is neither an array nor hashable.",
            at=at,
            got=type(source).__name__,
            expected="a distribution that is a pytree of arrays",
            fix="build it from arrays, NumPyro's transforms and constraints",
        ) from None
    avals = tuple(_jax.typeof(x) for x in leaves)
    try:
        value, log_prob_shape, batch_shape = _value_aval(skeleton, avals, _jax.numeric_mode())
    except _NoSampler:
        raise DistributionError(
            "a distribution cannot be drawn from.",
            at=at,
            got=type(source).__name__,
            expected="a distribution with a sampler",
            fix="use a proper distribution, and put the ratio of densities into vipl.factor",
        ) from None
    except ImportError as error:
        raise DistributionError(
            "a distribution needs a library that is not installed.",
            at=at,
            got=f"{type(source).__name__}, of which NumPyro says: {str(error).splitlines()[0]}",
            expected="the library that it names, or a distribution that NumPyro draws from by itself",
            fix="install the library; or use another family, such as a truncated Normal",
        ) from error
    except (TypeError, ValueError) as error:
        if isinstance(source, dist.Distribution) and "specify total_count_max" in str(error):
            raise DistributionError(
                "the counts of a multinomial are traced, and nothing says how large they are at most.",
                at=at,
                got=f"{type(innermost(source)).__name__} without total_count_max",
                expected="counts that are known, as NumPy's are, or their largest",
                fix="write total_count_max=20, say, beside the counts; or make the counts by NumPy outside the program",
            ) from error
        has_integers = any(jnp.issubdtype(jnp.result_type(x), jnp.integer) for x in jax.tree.leaves(source))
        if not (has_integers and re.search("must (be|have) a float", str(error))):
            raise
        raise DistributionError(
            "a distribution with integers for parameters cannot be drawn from.",
            at=at,
            got=f"{type(source).__name__}, of which NumPyro says: {str(error).splitlines()[0]}",
            expected="floats where a family has real parameters",
            fix="write 1.0 for 1, or convert arrays: x.astype(float)",
        ) from error
    if log_prob_shape != batch_shape:
        raise DistributionError(
            "a distribution's batch shape is out of date; its draws would repeat or misalign.",
            at=at,
            got=f"{type(source).__name__} that claims batch shape {batch_shape}, "
            f"with densities of shape {log_prob_shape}",
            expected="a distribution built from its parameters where it is used",
            fix="build the distribution inside jax.vmap, from mapped parameters, not outside it",
        )
    if not hasattr(value, "shape"):
        raise DistributionError(
            "a distribution's draw is not one array.",
            at=at,
            got=type(source).__name__,
            expected="a distribution over one array",
            fix="split it into several sites",
        )
    return value


def _no_distribution(source: object, at: str) -> DistributionError:
    fix = "pass e.g. numpyro.distributions.Normal(0.0, 1.0), or call the generative function"
    if library := library_of(source):
        name, ours = equivalent(source)
        got, fix = f"{name} of {library}", f"write {ours}"
    elif isinstance(source, type):
        got, fix = f"the class {source.__name__} itself", f"make one: {source.__name__}(...)"
    elif callable(source) and hasattr(source, "__name__"):
        got = f"the function {source.__name__} itself"
    else:
        got = f"{show_aval(source)} of {type(source).__module__.split('.')[0]}"
    return DistributionError(
        "the source of a site is neither a distribution nor a generative function with its arguments.",
        at=at,
        got=got,
        expected="a NumPyro distribution, or program(*args) with @vipl.gen on program",
        fix=fix,
    )


class Verdict(NamedTuple):
    """What is known of a value before its density is looked at; both of the shape of the log density.

    Attributes:
      inside: whether it lies in the support; what a mask takes out counts as inside.
      nan: whether a part of it is NaN, which the density has to show.
    """

    inside: Array
    nan: Array


def verdict(d: dist.Distribution, value: ArrayLike) -> Verdict:
    """Looks at a value through masks, `to_event`, `expand`, transforms and mixtures.

    NumPyro's support of a transformed distribution is the range of its last transform, and that of a mixture is its
    first component's. A value lies inside where it comes from a point of the base's support; where a component has it.
    """
    ndim = jnp.ndim(value) - len(d.event_shape)
    if isinstance(d, dist.MaskedDistribution):
        inner = verdict(d.base_dist, value)
        return Verdict(inner.inside | jnp.logical_not(d._mask), inner.nan & jnp.asarray(d._mask))
    if isinstance(d, (dist.Independent, dist.ExpandedDistribution)):
        inner = verdict(d.base_dist, value)
        return Verdict(_over_event(jnp.all, inner.inside, ndim), _over_event(jnp.any, inner.nan, ndim))
    inside = jnp.broadcast_to(_over_event(jnp.all, _lies_in(d, value), ndim), jnp.shape(value)[:ndim])
    nan = jnp.isnan(value) if jnp.issubdtype(jnp.result_type(value), jnp.inexact) else jnp.zeros(jnp.shape(value), bool)
    return Verdict(inside, _over_event(jnp.any, nan, ndim))


def _lies_in(d: dist.Distribution, value: ArrayLike) -> Array:
    """Whether a value lies in the support of a distribution; with some axes of the event, or without."""
    if isinstance(d, dist.TransformedDistribution) and not names_its_support(d):
        return _comes_from(d, value)
    if isinstance(d, dist.MixtureGeneral):
        return functools.reduce(jnp.logical_or, [verdict(x, value).inside for x in d.component_distributions])
    if isinstance(d, dist.MixtureSameFamily):
        return verdict(d.component_distribution, jnp.expand_dims(value, d.mixture_dim)).inside.any(-1)
    if joins_zero(d):
        return verdict(d.base_dist, value).inside | (value == 0)  # type: ignore[attr-defined]
    support = getattr(d, "support", None)  # some NumPyro classes lose it as pytrees: no verdict
    return jnp.array(True) if support is None else _satisfies(support, value)


def _satisfies(constraint: Any, value: ArrayLike) -> Array:
    """NumPyro's answer, but for the sum over a simplex: its rounding grows as the root of the number of terms."""
    if not isinstance(constraint, type(dist.constraints.simplex)):
        return constraint(value)
    x = inexact(value)
    tolerance = 1e-6 + 10 * float(jnp.finfo(x.dtype).eps) * x.shape[-1] ** 0.5
    return jnp.all(x >= 0, axis=-1) & (jnp.abs(jnp.sum(floating(x), axis=-1) - 1) <= tolerance)


def _comes_from(d: dist.TransformedDistribution, value: ArrayLike) -> Array:
    """Whether a value is what transforms make of a point of the base's support."""
    ndim = jnp.ndim(value) - len(d.event_shape)
    inside = jnp.array(True)
    for transform in reversed([step for x in d.transforms for step in steps_of(x)]):
        inside = inside & _in_range(transform, value, ndim)
        value = transform.inv(value)
    return inside & _over_event(jnp.all, verdict(d.base_dist, value).inside, ndim)


def _in_range(transform: t.Transform, value: ArrayLike, ndim: int) -> Array:
    """Whether a transform makes a value of anything; where NumPyro cannot say it, the inverse has to tell."""
    if isinstance(transform, t.CatTransform):
        inside = jnp.array(True)
        for inner, y in zip(transform.transforms, transform._slices(value), strict=True):  # type: ignore[arg-type]
            for step in reversed(steps_of(inner)):
                inside, y = inside & _in_range(step, y, ndim), step.inv(y)
        return inside
    if isinstance(transform, t.AffineTransform):  # every number; NumPyro's answer goes by a sign that it guesses
        return jnp.array(True)
    try:
        return _over_event(jnp.all, _satisfies(transform.codomain, value), ndim)
    except NotImplementedError:
        return jnp.array(True)


def _over_event(reduce: Callable[..., Array], x: ArrayLike, ndim: int) -> Array:
    return reduce(x, axis=tuple(range(ndim, jnp.ndim(x))))


# Their densities are positive for every number, and NaN for NaN: nothing to check.
_PLAIN = (dist.Normal, dist.MultivariateNormal, dist.StudentT, dist.Laplace, dist.Cauchy, dist.Logistic, dist.Gumbel)


def _checks_itself(base: dist.Distribution | Factor, value: Array) -> bool:
    """Whether a density is right outside the support, and for NaN, without our help.

    Flips by their logits are here for speed: they are the likelihood of many a large model, and a pass of its own
    over the data is not free.
    """
    if isinstance(base, BernoulliLogits):
        return not jnp.issubdtype(value.dtype, jnp.floating)
    return isinstance(base, (Factor, *_PLAIN))


def site_log_prob(site: Site, operands: Sequence[ArrayLike], value: Array, *, check: bool, ndim: int = 0) -> Array:
    """f[...], the log density of a site's value, summed over batch dimensions, but for the first `ndim`.

    Args:
      site: the site.
      operands: its operands.
      value: [...], the value.
      check: whether the value may lie outside the support, or be NaN: its log density is then -inf, or NaN.
        (NumPyro's densities alone are neither, for many families.)
      ndim: how many axes stay.
    """
    d = without_event(site.distribution.combine(operands[: site.num_distribution]))
    try:
        judged = verdict(d, value) if check and not _checks_itself(innermost(d), value) else None
        log_prob = d.log_prob(value if judged is None else _kept_inside(d, value, judged.inside | judged.nan))
    except NotImplementedError:
        raise _no_density(site, d) from None
    if judged is not None:
        log_prob = jnp.where(judged.nan, jnp.nan, jnp.where(judged.inside | judged.nan, log_prob, -jnp.inf))
    return total(log_prob, ndim)


def _kept_inside(d: dist.Distribution, value: Array, stays: Array) -> Array:
    """The value where it stays, and a point of the support elsewhere.

    Outside a support a formula may have no derivative, as log(y - z) below z: the derivative of the -inf that is the
    density there would be NaN, which is 0.
    """
    point = _some_point(d, value)
    if point is None:
        return value
    stays = jnp.expand_dims(stays, tuple(range(jnp.ndim(stays), jnp.ndim(value))))
    return jnp.where(stays, value, lax.stop_gradient(jnp.asarray(point, value.dtype)))


def _some_point(d: dist.Distribution, value: ArrayLike) -> ArrayLike | None:
    """A point of the support, of the shape and type of a value; None where none is known."""
    if isinstance(d, (dist.MaskedDistribution, dist.Independent, dist.ExpandedDistribution)):
        return _some_point(d.base_dist, value)
    if isinstance(d, dist.MixtureGeneral):
        return _some_point(d.component_distributions[0], value)
    if isinstance(d, dist.MixtureSameFamily):
        axis, values = d.mixture_dim, jnp.stack([value] * d.mixture_size, d.mixture_dim)
        points = _some_point(d.component_distribution, values)
        return None if points is None else jnp.take(jnp.asarray(points), 0, axis=axis)
    if joins_zero(d):
        return jnp.zeros_like(value)
    if isinstance(d, dist.TransformedDistribution) and not names_its_support(d):
        return _some_image(d, value)
    try:
        return d.support.feasible_like(value)  # type: ignore[union-attr]
    except (AttributeError, NotImplementedError, TypeError, ValueError):  # no support, or none that names a point
        return None


def _some_image(d: dist.TransformedDistribution, value: ArrayLike) -> ArrayLike | None:
    """What transforms make of a point of the base's support."""
    steps = [step for x in d.transforms for step in steps_of(x)]
    try:
        aval = jax.eval_shape(lambda y: functools.reduce(lambda y, step: step.inv(y), reversed(steps), y), value)
    except NotImplementedError:  # a transform without an inverse
        return None
    point = _some_point(d.base_dist, jnp.zeros(aval.shape, aval.dtype))
    return None if point is None else functools.reduce(lambda x, step: step(x), steps, point)


def without_event(d: dist.Distribution | Factor) -> Any:
    """The distribution without `to_event`: what is summed over everything needs one pass over the value alone."""
    while isinstance(d, dist.Independent):
        d = d.base_dist
    return d


def _no_density(site: Site, d: dist.Distribution) -> DistributionError:
    return DistributionError(
        "the density of a site cannot be evaluated at a given value.",
        at=site.at(),
        got=f"{type(innermost(d)).__name__} by a transform that has no inverse",
        expected="a value that the site draws itself, by `simulate`, whose density is known from the draw",
        fix="use such a flow in the guide; in a model, or where a value is given, take a transform with an inverse",
    )


def log_probs_of(
    site: Site, operands: Sequence[ArrayLike], value: Array, point: tuple[Array, Array] | None = None
) -> Array:
    """f[batch], the log densities of the parts of a drawn value.

    Args:
      site: the site.
      operands: its operands.
      value: [...], the value.
      point: another value, and its log densities, which are taken where the two agree.
    """
    d = without_event(site.distribution.combine(operands[: site.num_distribution]))
    log_probs: Any = d.log_prob(value)
    if point is None:
        return log_probs
    other, known = point
    same = jnp.all(value == other, axis=tuple(range(jnp.ndim(value) - len(d.event_shape), jnp.ndim(value))))
    return jnp.where(same, known, log_probs)
