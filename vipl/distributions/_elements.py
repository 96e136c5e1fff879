"""Some elements of a batch of independent draws, as a distribution of their own.

Law: for a distribution d with batch shape B, indices i of some of its elements, and values x,

    log_prob(take(d, i), x[i]) = log_prob(d, x)[i],

and the class of the distribution stays, so that whatever is known of it (its support, its derivatives, its exact
expectations) is known of the elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from vipl._jax import Tracer
from vipl.errors import show_aval

Index = tuple[Any, ...]
"""One integer array for each batch axis, all of one shape."""


class Inseparable(Exception):
    """The elements of a distribution cannot be told apart."""


def separate(d: Any) -> tuple[Any, tuple[int, ...]]:
    """A distribution without `to_event` and `expand`, and the shape B of the independent elements of its draws."""
    if isinstance(d, dist.ExpandedDistribution):
        base, shape = separate(d.base_dist)
        return base, (*d.batch_shape, *shape[len(d.base_dist.batch_shape) :])
    if isinstance(d, dist.Independent):
        return separate(d.base_dist)
    return d, tuple(d.batch_shape)


@dataclass(frozen=True, eq=False)
class Along:
    """In a distribution of one element: an array with one axis for each axis of the elements, and then its own.

    No pytree, so that it stands where an array stood.
    """

    array: Any
    event_shape: tuple[int, ...]


def each(d: Any, axes: int | None = None) -> tuple[Any, tuple[int, ...]]:
    """The distribution of one element, whichever it is, and the shape of the elements: B, or its first `axes` axes.

    Of the distribution's arrays, those that are not the same for all elements stand there as `Along`.

    Raises:
      Inseparable: it is not known which of the distribution's arrays have the axes of B.
    """
    base, shape = separate(d)
    ndim = len(shape) if axes is None else axes
    return _take(base, Each(ndim), shape), shape[:ndim]


class Each(NamedTuple):
    """In place of an index: all elements, kept apart, along the first `ndim` axes."""

    ndim: int


def take(d: Any, index: Index) -> Any:
    """The elements of a distribution at some indices.

    Args:
      d: a NumPyro distribution, whose draws have elements of shape B as `separate` says.
      index: for each axis of B an integer array; all have one shape, which is the batch shape of the result.

    Raises:
      Inseparable: it is not known which of the distribution's arrays have the axes of B.
    """
    base, shape = separate(d)
    return _take(base, index, shape)


def _take(d: Any, index: Index | Each, shape: tuple[int, ...]) -> Any:
    """The elements of a distribution whose batch shape broadcasts to `shape`, of which the first axes are indexed."""
    if isinstance(d, dist.ExpandedDistribution):
        return _take(d.base_dist, index, shape)
    if isinstance(d, dist.MaskedDistribution):
        if isinstance(index, Each):
            raise Inseparable("mask")
        return dist.MaskedDistribution(_take(d.base_dist, index, shape), pick(d._mask, index, shape, 0))
    if isinstance(d, dist.Independent):
        inner = tuple(d.base_dist.batch_shape)[len(d.batch_shape) :]
        return dist.Independent(_take(d.base_dist, index, shape + inner), d.reinterpreted_batch_ndims)
    cls = type(d)
    fields = cls.gather_pytree_data_fields()
    values, aux = d.tree_flatten()
    values = [_take_field(d, name, x, index, shape) for name, x in zip(fields, values, strict=True)]
    of = np.shape(index[0]) if index and not isinstance(index, Each) else ()
    batch = of + shape[_indexed(index) :]
    beside = dict(zip(cls.gather_pytree_aux_fields(), aux, strict=True))
    beside = {name: _same(x, name) for name, x in beside.items()} | {"_batch_shape": batch}
    return cls.tree_unflatten(tuple(beside.values()), tuple(values))


def _same(x: Any, name: str) -> Any:
    """What a distribution holds beside its arrays; of an array, the number that all of it is."""
    if isinstance(x, (np.ndarray, jax.Array)) and np.ndim(x):
        if not np.all(np.asarray(x) == np.asarray(x).flat[0]):
            raise Inseparable(name)
        return np.asarray(x).flat[0]
    return x


def _indexed(index: Index | Each) -> int:
    """How many axes are indexed."""
    return index.ndim if isinstance(index, Each) else len(index)


def _take_field(d: Any, name: str, x: Any, index: Index | Each, shape: tuple[int, ...]) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_take_field(d, name, part, index, shape) for part in x)
    if isinstance(x, dist.Distribution):
        extra = tuple(x.batch_shape)[len(d.batch_shape) :] if "component" in name else ()
        return _take(x, index, shape + extra)
    if isinstance(x, (Transform, constraints.Constraint)):
        return _take_each(d, x, index, shape)
    if x is None or not jax.tree.leaves(x):
        return x
    constraint = _constraint(type(d), name)
    if constraint is None and d.event_shape and np.shape(x):
        raise Inseparable(name)
    try:
        event_dim = 0 if constraint is None else constraint.event_dim
    except NotImplementedError:  # it depends on the distribution's other parameters
        raise Inseparable(name) from None
    return pick(x, index, shape, event_dim)


def _constraint(cls: type, name: str) -> constraints.Constraint | None:
    """What a parameter of a distribution has to be, which a class may have of the one that it derives from."""
    each = [vars(c).get("arg_constraints") for c in cls.__mro__]
    return next((c[name] for c in each if isinstance(c, dict) and name in c), None)


def _take_each(d: Any, x: Any, index: Index | Each, shape: tuple[int, ...]) -> Any:
    """The elements of a transform or a constraint."""
    leaves, structure = jax.tree.flatten(x)
    if all(np.shape(leaf) == () for leaf in leaves):
        return x
    try:
        spans = max(x.domain.event_dim, x.codomain.event_dim) if isinstance(x, Transform) else x.event_dim
    except NotImplementedError:
        spans = 1
    if spans:
        raise Inseparable(type(x).__name__)
    return jax.tree.unflatten(structure, [pick(leaf, index, shape, 0) for leaf in leaves])


def pick(x: Any, index: Index | Each, shape: tuple[int, ...], event_dim: int) -> Any:
    """x[index] of an array that broadcasts to a shape and then `event_dim` axes; a number stays what it is."""
    ndim = np.ndim(x) - event_dim
    if not _indexed(index) or ndim <= 0:
        return x
    event = np.shape(x)[ndim:]
    if any(n not in (1, m) for n, m in zip(np.shape(x)[:ndim][::-1], shape[::-1], strict=False)) or ndim > len(shape):
        raise Inseparable(show_aval(x))
    if isinstance(index, Each):
        if not isinstance(x, Tracer) and np.all(np.asarray(x) == np.asarray(x).flat[0]) and not event:
            return np.asarray(x).flat[0]
        return Along(jnp.broadcast_to(x, (*shape, *event)), (*shape[index.ndim :], *event))
    concrete = not isinstance(x, Tracer) and not any(isinstance(i, Tracer) for i in index)
    if not concrete:
        return jnp.broadcast_to(x, (*shape, *event))[tuple(index)]
    with jax.ensure_compile_time_eval():
        picked = np.broadcast_to(np.asarray(x), (*shape, *event))[tuple(index)]
        return picked if isinstance(x, np.ndarray) else jnp.asarray(picked)
