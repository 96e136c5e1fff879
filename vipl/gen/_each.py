"""A site with a vector of independent draws, as a site of one element in lanes.

Invariant: with an estimator e that weighs the objective,

    sample("z", Bernoulli(p).to_event(1), e)   and   vmap(lambda p: sample("z", Bernoulli(p), e))(p)

are the same estimator.

Which sites: those whose distribution can be taken apart (`vipl.distributions._elements`), where the estimator has
weights (that of a reparametrized site has none, and nothing is told apart by them), no baseline for the whole of the
objective, and no arrays of its own, which may be meant for the vector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipl import _jax
from vipl._jax import ClosedJaxpr, ShapedArray
from vipl._types import Array
from vipl.distributions._elements import Along, Inseparable, each
from vipl.gen._density import is_factor
from vipl.gen._estimator import Draw, Points, unmasked
from vipl.gen._points import points_of
from vipl.ir.dataflow import backward, evaluate, plain, read_arrays
from vipl.ir.partition import Integers, concrete_integer, partition
from vipl.ir.primitives import Site, bind_site


class Separated(NamedTuple):
    """A vector site, taken apart.

    Attributes:
      site: that of one element.
      shape: that of the elements, B.
      spread: jaxpr, the operands of the whole -> those of the elements.
      along: which of these have the axes of B in front; the others are the same for all elements.
      whole_is_served: whether the estimator serves the whole, too.
      joint: whether the whole has fewer alternatives than its elements together have, since they change together.
    """

    site: Site
    shape: tuple[int, ...]
    spread: ClosedJaxpr
    along: tuple[bool, ...]
    whole_is_served: bool
    joint: bool

    def bind(self, whole: Site, operands: Sequence[Array]) -> list[Array]:
        """Binds the site of one element in lanes; what the site `whole` gives of its operands."""
        constvars, consts, invars, eqns, outvars = _jax.parts(self.spread)
        env = dict(zip([*constvars, *invars], [*consts, *operands], strict=True))
        arrays = read_arrays(evaluate(backward(eqns, outvars).eqns(eqns), env, plain), outvars)

        def bind(*xs):
            return bind_site(xs, self.site)

        axes = tuple(0 if along else None for along in self.along)
        for size in reversed(self.shape):
            bind = jax.vmap(bind, axes, axis_size=size)
        out = bind(*arrays)
        if not whole.weighs:
            return [out]
        value, log_prob = out
        return [value, jnp.sum(log_prob, axis=tuple(range(len(whole.log_shape), len(self.shape))))]


def check_points(site: Site, avals: tuple[ShapedArray, ...]) -> None:
    """Raises where the estimator of a site cannot serve it, as a whole or element by element."""
    if separated(site, avals) is None:
        points_of(site, avals)


def separated(site: Site, avals: tuple[ShapedArray, ...], axes: int | None = None) -> Separated | None:
    """A site with an estimator, of operands with these abstract values, taken apart; None where it stays whole.

    Args:
      site: the site.
      avals: the abstract values of its operands.
      axes: along how many leading axes of its elements; None: all of them.
    """
    arrays = avals[site.num_distribution :]
    if is_factor(site) or not site.is_exact or site.scaled or any(x.shape for x in arrays):
        return None
    if not site.estimator.combine(arrays).has_weights:  # type: ignore[union-attr]
        return None
    apart = _separated(
        replace(site, address=("",), where="", support=None, present=None), avals, axes, _jax.numeric_mode()
    )
    if apart is None:
        return None
    present = None if site.present is None else _for_elements(site.present, len(apart.shape))
    element = replace(apart.site, address=site.address, where=site.where, present=present)
    return apart._replace(site=element)


def _for_elements(present: Integers, ndim: int) -> Integers:
    passes = present.array()
    return Integers.of(passes.reshape(*passes.shape, *(1,) * ndim))


@functools.lru_cache(maxsize=4096)
def _separated(whole: Site, avals: tuple[ShapedArray, ...], axes: int | None, mode: Hashable) -> Separated | None:
    del mode  # part of the cache key only
    try:
        site, spread, along, shape = _element(whole, avals, axes)
        outs = zip(_jax.parts(spread).outvars, along, strict=True)
        own = [_without_axes(v.aval, len(shape) * is_along) for v, is_along in outs]
        points = points_of(site, tuple(own)).shape
    except Exception:  # of the user's distribution or estimator, too: the whole is what they have to serve
        return None
    count = math.prod(shape)
    if not shape or count < 2 or not _has_weights(points):
        return None
    try:
        of_whole = points_of(whole, avals).shape
    except Exception:  # an estimator of scalars, say
        of_whole = None
    joint = of_whole is not None and count * _num_alternatives(points) > _num_alternatives(of_whole)
    return Separated(site, shape, spread, along, of_whole is not None, joint)


def _element(
    whole: Site, avals: tuple[ShapedArray, ...], axes: int | None
) -> tuple[Site, ClosedJaxpr, tuple[bool, ...], tuple[int, ...]]:
    """The site of one element, what makes its operands, which of these have the axes of the elements, and B."""
    found: list[Any] = []

    def spread(*operands):
        source, estimator = operands[: whole.num_distribution], operands[whole.num_distribution :]
        d = whole.distribution.combine(source)
        if not isinstance(d, dist.Distribution):  # a record, say
            raise Inseparable(type(d).__name__)
        # What is drawn has no mask; the density of what the site weighs itself has.
        d, shape = each(d if whole.weighs else unmasked(d), axes)
        leaves, structure = jax.tree.flatten(d)
        arrays = {}
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Along):
                leaves[i] = jnp.zeros(leaf.event_shape, leaf.array.dtype)  # traced, so that it stays an operand
                arrays[id(leaves[i])] = leaf.array
        skeleton, own = partition(jax.tree.unflatten(structure, leaves), keep=concrete_integer)
        found.extend([skeleton, [id(x) in arrays for x in own], shape])
        return [*(arrays.get(id(x), x) for x in own), *estimator]

    jaxpr = jax.make_jaxpr(spread)(*avals)
    skeleton, along, shape = found
    element = replace(
        whole, distribution=skeleton, num_distribution=len(along), shape=whole.shape[len(shape) :], log_shape=()
    )
    return element, jaxpr, (*along, *[False] * (len(avals) - whole.num_distribution)), shape


def _without_axes(aval: ShapedArray, number: int) -> ShapedArray:
    return functools.reduce(lambda aval, _: _jax.without_axis(aval, 0), range(number), aval)


def _num_alternatives(points: Draw | Points) -> int:
    others = None if isinstance(points, Points) else points.alternatives or points.pruned
    return 0 if others is None else others.weights.shape[0]


def _has_weights(points: Draw | Points) -> bool:
    """Whether something counts element by element, and nothing for the objective as a whole."""
    if isinstance(points, Points):
        return True
    each_counts = (points.log_weight, points.shared_control, points.alternatives, points.pruned)
    return points.control is None and any(x is not None for x in each_counts)
