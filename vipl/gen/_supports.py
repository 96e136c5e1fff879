"""The sets that NumPyro's distributions draw on, as `Region`s.

A support is described when its site is made, where concrete bounds are still numbers. Invariant: a distribution draws
in `describe(d)`, and its `log_prob` is a density with respect to the measure that it names. NumPyro's own `support` of
a transformed distribution is the range of its last transform, which is neither; here the base's support is pushed
through all transforms (`image_of`). None: nothing is known, and values are looked at when the program runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints as c
from numpyro.distributions import transforms as t
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.discrete import ZeroInflatedProbs

from vipl._jax import Tracer
from vipl._types import ArrayLike
from vipl.analysis.regions import (
    ATOM,
    ATOMS,
    COMPLEX,
    COUNTING,
    EVERYWHERE,
    LEBESGUE,
    POINT,
    Numbers,
    Region,
    box,
    concatenated,
    continuous,
    coordinates,
    image,
    included,
    manifold,
    numbers,
    part,
    rearranged,
    union,
    unsure,
)  # fmt: skip
from vipl.distributions._points import innermost

_INF = math.inf

Shape = tuple[int, ...]

Rule = Callable[[Any, Shape], Region | None]
"""(constraint, shape of arrays, batch axes included) -> the set that the constraint describes."""


def concrete(x: object) -> Numbers | None:
    """A bound or parameter as numbers; None where it is traced."""
    if isinstance(x, (bool, int, float, np.number)) or (
        isinstance(x, (np.ndarray, jax.Array)) and not isinstance(x, Tracer)
    ):
        return numbers(x)
    return None


# --- constraints ------------------------------------------------------------------------------------------


def _bounded(measure: str) -> Rule:
    def make(s: Any, _: Shape) -> Region:
        low = concrete(s.lower_bound) if hasattr(s, "lower_bound") else -_INF
        high = concrete(s.upper_bound) if hasattr(s, "upper_bound") else _INF
        return box(measure, low, high)

    return make


def _squares(name: str, *, always: bool = False) -> Rule:
    """Sets of square matrices; one that is 1 x 1 is a positive number."""

    def make(_: Constraint, shape: Shape) -> Region:
        return box(LEBESGUE, 0, _INF) if shape[-1] == 1 and not always else manifold(name, 2)

    return make


def _increasing(low: float) -> Rule:
    def make(_: Constraint, shape: Shape) -> Region:
        more = {"structure": ("increasing vectors",), "event_dim": 1} if shape[-1] > 1 else {}
        return box(LEBESGUE, low, _INF, **more)

    return make


def _ball(_: Constraint, shape: Shape) -> Region:
    more = {"structure": ("the l1 ball", shape[-1]), "event_dim": 1} if shape[-1] > 1 else {}
    return box(LEBESGUE, -1, 1, **more)


def _counts(s: Any, _: Shape) -> Region:
    total = concrete(s.upper_bound)
    high = None if total is None else numbers(total.array()[..., None] if total.shape else total.array())
    return box(COUNTING, 0, high, structure=("multinomial", total), event_dim=1)


def _circulant(_: Constraint, shape: Shape) -> Region:
    if shape[-1] == 1:
        return box(LEBESGUE, 0, _INF)
    return manifold("positive definite circulant vectors", 1)


def _joined(s: Any, shape: Shape) -> Region | None:
    """Slices along one axis; a box where all are."""
    axis = s.dim % len(shape)
    pieces = [(*shape[:axis], n, *shape[axis + 1 :]) for n in s.lengths]
    regions = [region_of(x, piece) for x, piece in zip(s.cseq, pieces, strict=True)]
    return joined(regions, pieces, axis)


def joined(regions: list[Region | None], shapes: list[Shape], axis: int) -> Region | None:
    """The set of arrays whose slices along an axis lie in these."""
    known = [r for r in regions if r is not None]
    if len(known) < len(regions):
        return None
    measures = {r.measure for r in known}
    if len(set(known)) == 1 and known[0].rank == 0:
        return known[0]
    if len(measures) > 1 or any(r.structure is not None for r in known):
        same = measures in ({LEBESGUE}, {COUNTING})
        measure = known[0].measure if same else ("slices", *(r.measure for r in known))
        return Region(measure, None, None, exact=False, tight=False)
    return concatenated(known, shapes, axis)


_REAL, _INTEGER = _bounded(LEBESGUE), _bounded(COUNTING)

_BY_CONSTRAINT: dict[type, Rule] = {
    type(c.boolean): lambda *_: box(COUNTING, 0, 1),
    type(c.nonnegative_integer): _INTEGER,
    type(c.positive_integer): _INTEGER,
    c.integer_interval: _INTEGER,
    c.integer_greater_than: _INTEGER,
    c.multinomial: _counts,
    type(c.real): lambda *_: EVERYWHERE,
    type(c.complex): lambda *_: box(COMPLEX, -_INF, _INF),
    c.greater_than: _REAL,
    c.greater_than_eq: _REAL,
    c.less_than: _REAL,
    c.less_than_eq: _REAL,
    c.interval: _REAL,
    c.open_interval: _REAL,
    type(c.positive): _REAL,
    type(c.nonnegative): _REAL,
    type(c.softplus_positive): _REAL,
    type(c.unit_interval): _REAL,
    type(c.circular): _REAL,
    type(c.ordered_vector): _increasing(-_INF),
    type(c.positive_ordered_vector): _increasing(0),
    type(c.l1_ball): _ball,
    type(c.simplex): lambda *_: manifold("the simplex", 1),
    type(c.sphere): lambda *_: manifold("the sphere", 1),
    c.zero_sum: lambda s, _: manifold("arrays that sum to zero", s.event_dim, s.event_dim),
    type(c.corr_matrix): _squares("correlation matrices", always=True),
    type(c.corr_cholesky): _squares("Cholesky factors of correlation matrices", always=True),
    type(c.positive_definite): _squares("positive definite matrices"),
    type(c.positive_semidefinite): _squares("positive definite matrices"),
    type(c.lower_cholesky): _squares("Cholesky factors"),
    type(c.softplus_lower_cholesky): _squares("Cholesky factors"),
    type(c.scaled_unit_lower_cholesky): _squares("Cholesky factors"),
    type(c.positive_definite_circulant_vector): _circulant,
    c.cat: _joined,
}


def region_of(s: Constraint, shape: Shape) -> Region | None:
    """The set that a constraint describes, of arrays of a shape (batch axes included)."""
    while isinstance(s, c.independent):  # real_vector and real_matrix are independent, too
        s = s.base_constraint
    make = _BY_CONSTRAINT.get(type(s))
    return None if make is None else make(s, shape)


# --- transforms -------------------------------------------------------------------------------------------


def image_of(transform: t.Transform, region: Region | None, shape: Shape) -> Region | None:
    """The set that a transform makes of a set of arrays of a shape, with the measure of the density there."""
    if region is None or isinstance(transform, t.IdentityTransform):
        return region
    steps = steps_of(transform)
    if len(steps) > 1 or steps[0] is not transform:
        for step in steps:
            region, shape = image_of(step, region, shape), step.forward_shape(shape)
        return region
    if region is None:
        return None
    if isinstance(transform, t.IndependentTransform):
        return image_of(transform.base_transform, region, shape)
    if region.measure == POINT:
        return region
    if isinstance(transform, t.CatTransform):
        return _image_of_slices(transform, region, shape)
    if isinstance(transform, (t.PermuteTransform, t.ReshapeTransform)):
        return _moved(transform, region, shape)
    if (scalar := elementwise(transform)) is not None:
        return _mapped(region, scalar)
    return _whole(transform, region, shape)


def steps_of(transform: t.Transform) -> list[t.Transform]:
    """The transforms that one is composed of, in order; inverses and `to_event` are of single ones."""
    if isinstance(transform, t.ComposeTransform):
        return [step for inner in transform.parts for step in steps_of(inner)]
    if isinstance(transform, t.IndependentTransform):
        steps = steps_of(transform.base_transform)
        n = transform.reinterpreted_batch_ndims
        return [transform] if len(steps) == 1 else [t.IndependentTransform(step, n) for step in steps]
    if isinstance(transform, t._InverseTransform) and len(steps := steps_of(transform.inv)) > 1:
        return [step.inv for step in reversed(steps)]
    return [transform]


def _whole(transform: t.Transform, region: Region, shape: Shape) -> Region | None:
    """The range of a transform of its whole domain; a part of it for less; an image for what has another measure."""
    if isinstance(transform.inv if isinstance(transform, t._InverseTransform) else transform, _NOT_ONTO):
        return None
    domain = region_of(transform.domain, shape)
    codomain = region_of(transform.codomain, transform.forward_shape(shape))
    if domain is None or codomain is None:
        return None
    if continuous(region.measure, domain.measure) is not True:
        return image(region)
    if included(region, domain) is not True:
        return None
    return codomain if included(domain, region) else part(codomain)


# The range that these name has more dimensions than what they map to it.
_NOT_ONTO = (t.RealFastFourierTransform, t.PackRealFastFourierCoefficientsTransform, t.UnpackTransform)


class Map(NamedTuple):
    """A monotone function of single numbers.

    Attributes:
      function: of NumPy arrays; NaN where its value is not known.
      sign: 1 where it rises, -1 where it falls; None where that is not known, or differs from number to number.
      one: whether all numbers have the same function.
      low: the numbers above it are mapped onto themselves, whatever the parameters are; None where there are none.
    """

    function: Callable[[np.ndarray], np.ndarray]
    sign: int | None
    one: bool
    low: float | None


def elementwise(transform: t.Transform) -> Map | None:
    """The function that a transform is of single numbers; None where it is something else."""
    inverted = isinstance(transform, t._InverseTransform)
    inner = transform.inv if inverted else transform
    if isinstance(inner, t.AffineTransform):
        loc, scale = concrete(inner.loc), concrete(inner.scale)
        one = all(np.ndim(x) == 0 or (n and n.shape == ()) for x, n in [(inner.loc, loc), (inner.scale, scale)])
        a, b = (np.nan if x is None else x.array() for x in (loc, scale))
        function = (lambda x: (x - a) / b) if inverted else (lambda x: a + b * x)
        sign = _sign(scale)
        if None in (loc, scale):  # only what is infinite stays known
            return Map(lambda x: np.where(np.isinf(x), (sign or np.nan) * x, np.nan), sign, one, -_INF)
        return Map(function, sign, one, -_INF)
    if isinstance(inner, t.PowerTransform):
        exponent = concrete(inner.exponent)
        power = np.asarray(np.nan) if exponent is None else exponent.array()
        return Map(lambda x: x ** (1 / power if inverted else power), _sign(exponent), power.ndim == 0, 0.0)
    pair = _SCALAR_MAPS.get(type(inner))
    return None if pair is None else Map(pair[inverted], 1, True, None)


_SCALAR_MAPS: dict[type, tuple[Callable, Callable]] = {
    t.ExpTransform: (np.exp, np.log),
    t.SigmoidTransform: (lambda x: 1 / (1 + np.exp(-x)), lambda y: np.log(y) - np.log1p(-y)),
    t.SoftplusTransform: (lambda x: np.logaddexp(x, 0), lambda y: np.log(-np.expm1(-y)) + y),
}


def _sign(scale: Numbers | None) -> int | None:
    if scale is None:
        return None
    return 1 if min(scale.values) > 0 else -1 if max(scale.values) < 0 else None


def _mapped(region: Region, scalar: Map) -> Region | None:
    """The image of a set under a monotone function of its numbers."""
    function, sign, one, _ = scalar
    if region.measure == COUNTING:
        return _mapped_integers(region, scalar)
    if region.measure != LEBESGUE:
        return region if _keeps(region, scalar) else image(region)
    if _keeps_bounds(scalar, region):
        low, high = region.low, region.high
    elif sign is None:
        ends = [_value(function, x) for x in (region.low, region.high)]
        low, high = (_extreme(which, *ends) for which in (np.minimum, np.maximum))
    else:
        low, high = (_value(function, x) for x in (region.low, region.high)[::sign])
    if region.structure is None or (region.structure[0] == "increasing vectors" and sign == 1 and one):
        return region._replace(low=low, high=high)
    return Region(LEBESGUE, low, high, exact=False, tight=region.tight)


def _keeps_bounds(scalar: Map, region: Region) -> bool:
    """Whether a function maps the numbers between the bounds of a set onto themselves, whatever its parameters are."""
    return scalar.low is not None and (region.low, region.high) == (numbers(scalar.low), numbers(_INF))


def _extreme(which: np.ufunc, x: Numbers | None, y: Numbers | None) -> Numbers | None:
    return None if x is None or y is None else numbers(which(x.array(), y.array()))


def _value(function: Callable[[np.ndarray], np.ndarray], bound: Numbers | None) -> Numbers | None:
    if bound is None:
        return None
    with np.errstate(all="ignore"):
        return numbers(function(bound.array()))


def _mapped_integers(region: Region, scalar: Map) -> Region:
    """Integers that are shifted or mirrored stay integers; NumPyro's density of others is not their probability."""
    function, sign, one, _ = scalar
    steps = _steps(scalar)
    if sign is None or not one or region.structure is not None or abs(steps[1] - steps[0]) != 1 or steps[0] % 1:
        return image(region)
    low, high = (_value(function, x) for x in (region.low, region.high)[::sign])
    return region._replace(low=low, high=high)


def _keeps(region: Region, scalar: Map) -> bool:
    """Whether a function of single numbers is nothing, or a mirror that keeps the set."""
    mirrored = region.structure is not None and region.structure[0] in ("the sphere", "arrays that sum to zero")
    return scalar.one and _steps(scalar) in ([-1, 0, 1], [1, 0, -1] if mirrored else [])


def _steps(scalar: Map) -> list[float]:
    with np.errstate(all="ignore"):
        return np.broadcast_to(scalar.function(np.arange(-1.0, 2.0)), 3).tolist() if scalar.one else [np.nan] * 3


_SYMMETRIC = ("the simplex", "the sphere", "the l1 ball", "multinomial")


def _moved(transform: t.PermuteTransform | t.ReshapeTransform, region: Region, shape: Shape) -> Region | None:
    """The image of a set under a permutation along the last axis, or another shape."""
    if region.rank == 0:
        return region
    if not isinstance(transform, t.PermuteTransform):
        return rearranged(region, shape, transform)
    if region.structure is not None:
        symmetric = region.structure[0] in _SYMMETRIC or region.structure == ("arrays that sum to zero", 1)
        return region if symmetric else rearranged(region, shape, transform)
    order = concrete(transform.permutation)
    return (
        coordinates(region) if order is None else rearranged(region, shape, lambda x: x[..., order.array().astype(int)])
    )


def _image_of_slices(transform: t.CatTransform, region: Region, shape: Shape) -> Region | None:
    if region.rank:
        return None
    axis = transform.dim % len(shape)
    pieces = [(*shape[:axis], n, *shape[axis + 1 :]) for n in transform.lengths]
    regions = [image_of(x, region, piece) for x, piece in zip(transform.transforms, pieces, strict=True)]
    outs = [x.forward_shape(piece) for x, piece in zip(transform.transforms, pieces, strict=True)]
    return joined(regions, outs, axis)


# --- distributions ----------------------------------------------------------------------------------------


def _classes(*names: str) -> tuple[type, ...]:
    """NumPyro's classes of these names; not every version has all."""
    return tuple(getattr(dist, name) for name in names if hasattr(dist, name))


_CENSORED = _classes("LeftCensoredDistribution", "RightCensoredDistribution", "IntervalCensoredDistribution")
_JOIN_ZERO = (ZeroInflatedProbs, *_classes("HurdleProbs", "HurdleLogits"))


def joins_zero(d: dist.Distribution) -> bool:
    """Whether a distribution draws 0 besides what its base draws."""
    return isinstance(d, _JOIN_ZERO)


def names_its_support(d: dist.Distribution) -> bool:
    """Whether a transformed distribution says itself where it draws, as LogNormal does."""
    return type(d).support is not dist.TransformedDistribution.support


def describe(d: dist.Distribution) -> Region | None:
    """The set that a distribution draws on; None where it is not known."""
    try:
        return _describe(d)
    except NotImplementedError:  # a transform or a support that NumPyro cannot say itself
        return None


@functools.singledispatch
def _describe(d: dist.Distribution) -> Region | None:
    support = getattr(d, "support", None)
    return None if support is None else region_of(support, d.shape())


@_describe.register
def _(d: dist.MaskedDistribution) -> Region | None:
    region, mask = describe(d.base_dist), concrete(d._mask)
    return region if region is None or (mask is not None and min(mask.values)) else unsure(region)


@_describe.register(dist.Independent)
@_describe.register(dist.ExpandedDistribution)
def _(d: dist.Independent | dist.ExpandedDistribution) -> Region | None:
    return describe(d.base_dist)


@_describe.register
def _(d: dist.Delta) -> Region:
    del d
    return Region(POINT, None, None, exact=False, tight=False)


@_describe.register
def _(d: dist.TransformedDistribution) -> Region | None:
    if names_its_support(d):
        return region_of(d.support, d.shape())
    return image_of(t.ComposeTransform(list(d.transforms)), describe(d.base_dist), d.base_dist.shape())


@_describe.register
def _(d: dist.MixtureGeneral) -> Region | None:
    return _mixed([describe(x) for x in d.component_distributions], scalar=not d.event_shape)


@_describe.register
def _(d: dist.MixtureSameFamily) -> Region | None:
    region = describe(d.component_distribution)
    return region if region is None or region.rank <= region.event_dim else coordinates(region)


@_describe.register
def _(d: dist.GaussianCopula) -> Region | None:
    return describe(d.marginal_dist)


for _class in _CENSORED:  # the log density is that of an event, not of the value
    _describe.register(_class, lambda d: None)
for _class in _JOIN_ZERO:
    _describe.register(_class, lambda d: _with_zero(describe(d.base_dist)))


def _mixed(regions: list[Region | None], *, scalar: bool) -> Region | None:
    """The union of sets; intervals that overlap are one interval."""
    known = [r._replace(measure=ATOMS) if r.measure == POINT else r for r in regions if r is not None]
    if len(known) < len(regions):
        return None
    intervals = [i for r in known if (i := _interval(r)) is not None and r.measure == known[0].measure]
    first, *others = known
    for r in others:
        first = union(first, r)
    if not scalar or len(intervals) < len(known):
        return first
    intervals.sort()
    tops = [max(high for _, high in intervals[: i + 1]) for i in range(len(intervals))]
    whole = all(low <= top for (low, _), top in zip(intervals[1:], tops, strict=False))
    return first._replace(exact=whole, tight=True)


def _interval(region: Region) -> tuple[float, float] | None:
    if region.low is None or region.high is None or region.rank or region.structure is not None or not region.exact:
        return None
    return region.low.values[0], region.high.values[0]


def _with_zero(region: Region | None) -> Region | None:
    """The set with 0 in it; of a continuous one 0 is an atom."""
    if region is None or region.measure not in (COUNTING, LEBESGUE):
        return None
    zero = box(region.measure, 0, 0)
    both = region if included(zero, region) else union(region, zero)._replace(tight=region.tight)
    return both if region.measure == COUNTING else both._replace(measure=ATOM)


# --- parameters that move a support -----------------------------------------------------------------------


def moving_parameters(d: dist.Distribution) -> list[ArrayLike | None]:
    """The parameters on which the set that a distribution draws on depends."""
    d = innermost(d)
    if isinstance(d, dist.Delta):
        return [d.v]
    if isinstance(d, dist.MixtureSameFamily):
        return moving_parameters(d.component_distribution)
    if isinstance(d, dist.MixtureGeneral):
        return [x for component in d.component_distributions for x in moving_parameters(component)]
    if isinstance(d, dist.GaussianCopula):
        return moving_parameters(d.marginal_dist)
    if isinstance(d, (*_JOIN_ZERO, *_CENSORED)):
        return moving_parameters(d.base_dist)  # type: ignore[attr-defined]
    if not isinstance(d, dist.TransformedDistribution) or names_its_support(d):
        return _bounds(getattr(d, "support", None))
    found, region, shape = moving_parameters(d.base_dist), describe(d.base_dist), d.base_dist.shape()
    for step in (step for transform in d.transforms for step in steps_of(transform)):
        found += _moving(step, region, shape)
        region, shape = image_of(step, region, shape), step.forward_shape(shape)
    return found


def _bounds(support: Constraint | None) -> list[ArrayLike | None]:
    while isinstance(support, c.independent):
        support = support.base_constraint
    if isinstance(support, c.cat):
        return [x for part in support.cseq for x in _bounds(part)]
    return [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]


def _moving(transform: t.Transform, region: Region | None, shape: Shape) -> Sequence[ArrayLike]:
    """The parameters of a transform on which the image of a set depends."""
    inner, inverted = _single(transform)
    scalar = elementwise(inner)
    if region is not None and region.measure == LEBESGUE and region.structure is None:
        if isinstance(inner, t.AffineTransform):
            return _moving_bounds(inner, inverted, region)
        if scalar is not None and _keeps_bounds(scalar, region):
            return []
    domain = region_of(transform.domain, shape) if scalar is None else None
    whole = domain is not None and included(domain, region) and included(region, domain)
    return [] if whole else jax.tree.leaves(inner)


def _single(transform: t.Transform) -> tuple[t.Transform, bool]:
    """The transform behind inverses and `to_event`, and whether there is an inverse."""
    if isinstance(transform, t.IndependentTransform):
        return _single(transform.base_transform)
    return (_single(transform.inv)[0], True) if isinstance(transform, t._InverseTransform) else (transform, False)


def _moving_bounds(transform: t.AffineTransform, inverted: bool, region: Region) -> Sequence[ArrayLike]:
    """The location, where a bound may be finite; the scale, where such a bound may move with it: one at 0 does not."""
    finite = [x for x in (region.low, region.high) if x is None or any(map(math.isfinite, x.values))]
    scaled = [x for x in finite if x is None or any(x.values) or inverted]
    return [transform.loc] * bool(finite) + [transform.scale] * bool(scaled)
