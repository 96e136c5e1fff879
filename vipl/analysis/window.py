"""Axes along which an element depends on passes of a loop that are near it, before it, or after it.

The steps of a `scan` are causal: what step t makes depends on steps up to t. What is shifted, as by
`concatenate([z0, z[:-1]])`, depends on the step before; a running sum on all before it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl._jax import Eqn
from vipl._types import Array
from vipl.analysis.index import Indexed

WIDE = 8
"""How many passes a window has at most that is bounded on both sides: beyond, its farther bound is given up."""


class Window(NamedTuple):
    """An axis along which element i depends on passes i + first to i + last of a loop alone; None: no bound there.

    Attributes:
      axis: the axis of the value.
      first: of the passes, counted from i.
      last: of the passes, counted from i.
    """

    axis: int
    first: int | None
    last: int | None

    def after(self, inner: int | Window) -> Window | None:
        """The axis of a value computed along `self` from one along `inner`; None where no bound is left."""
        first, last = _bounds(inner)
        return bounded(self.axis, _add(self.first, first), _add(self.last, last))


Axis = int | Indexed | Window


def axis_of(a: Axis) -> int:
    """The axis itself."""
    return a if isinstance(a, int) else a.axis


def bounded(axis: int, first: int | None, last: int | None) -> Window | None:
    """A window; None where it has no bound."""
    if first is not None and last is not None and last - first >= WIDE:
        first, last = (None, last) if abs(first) >= abs(last) else (first, None)
    return None if first is None and last is None else Window(axis, first, last)


def joined(one: Axis | None, other: Axis | None) -> Axis | None:
    """The axis of what is computed elementwise from two values: of windows, what holds both."""
    if one == other:
        return one
    if one is None or other is None or isinstance(one, Indexed) or isinstance(other, Indexed):
        return None
    if axis_of(one) != axis_of(other):
        return None
    a, b = _bounds(one), _bounds(other)
    first = None if a[0] is None or b[0] is None else min(a[0], b[0])
    last = None if a[1] is None or b[1] is None else max(a[1], b[1])
    return bounded(axis_of(one), first, last)


def without_growth(old: Axis | None, new: Axis | None, axis: int) -> Axis | None:
    """What is known of a carry when a loop is followed once more: a window along the loop, without a moved bound."""
    if not (isinstance(old, Window) and isinstance(new, Window) and new.axis == axis):
        return new
    first, last = (a if a == b else None for a, b in zip(_bounds(old), _bounds(new), strict=True))
    return bounded(axis, first, last)


def window_of(eqn: Eqn, k: int, a: int) -> Window | None:
    """What becomes of axis `a` of operand `k` where elements are shifted along it, or added up in order."""
    p, name = eqn.params, eqn.primitive.name
    if name == "slice":
        start, stride = p["start_indices"][a], 1 if p["strides"] is None else p["strides"][a]
        return Window(a, start, start) if stride == 1 else None
    if name == "concatenate" and a == p["dimension"]:
        before = sum(v.aval.shape[a] for v in eqn.invars[:k])
        return Window(a, -before, -before)
    if name == "pad" and k == 0 and p["padding_config"][a][2] == 0:
        low = p["padding_config"][a][0]
        return Window(a, -low, -low)
    if name in ("cumsum", "cumlogsumexp", "cummax", "cummin", "cumprod") and a == p["axis"]:
        return Window(a, 0, None) if p["reverse"] else Window(a, None, 0)
    return None


def summed_over(x: Array, axis: int, window: Window, size: int) -> Array:
    """Along an axis of n passes, the sum over those in the window of each of `size` elements."""
    n, (_, first, last) = x.shape[axis], window
    x = jnp.moveaxis(x, axis, 0)
    none = jnp.zeros_like(x[:1])
    if first is not None and last is not None:
        row = jnp.concatenate([none, x, none])
        shifted = [row[_within(np.arange(size) + d + 1, n + 1)] for d in range(first, last + 1)]
        return jnp.moveaxis(sum(shifted, jnp.zeros_like(shifted[0])), 0, axis)
    if last is not None:
        total = jnp.concatenate([none, jnp.cumsum(x, axis=0)])
        return jnp.moveaxis(total[_within(np.arange(size) + last + 1, n)], 0, axis)
    total = jnp.concatenate([lax.cumsum(x, reverse=True), none])
    return jnp.moveaxis(total[_within(np.arange(size) + (first or 0), n)], 0, axis)


def _within(numbers: np.ndarray, last: int) -> slice | np.ndarray:
    """Numbers from 0 to `last`, as a slice where they follow one another."""
    inside = np.clip(numbers, 0, last)
    is_row = len(inside) > 0 and np.array_equal(inside, np.arange(inside[0], inside[0] + len(inside)))
    return slice(int(inside[0]), int(inside[0]) + len(inside)) if is_row else inside


def _bounds(a: int | Window) -> tuple[int | None, int | None]:
    return (a.first, a.last) if isinstance(a, Window) else (0, 0)


def _add(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
