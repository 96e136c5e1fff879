"""The same values with less to do: no equation twice, none that nothing reads, and the rows of an array at once.

XLA finds equations that occur twice, but only after JAX has differentiated both. The log density of a draw, say, is
evaluated by an objective and once more by the score of the site. Merged before, it is differentiated once.

Of an array whose rows are read one by one, as the parameters of many named sites are, the derivative would be a sum of
as many arrays of its size, each of zeros but for a row. That of one `split` is one `concatenate`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl import _jax
from vipl._jax import Atom, Eqn
from vipl._types import Array, ArrayLike, PyTree
from vipl.ir.dataflow import backward, evaluate, plain, read
from vipl.ir.keys import is_key
from vipl.ir.purity import is_pure
from vipl.ir.stage import stage

T = TypeVar("T")

_FEW = 64
"""Up to how many rows of an array are read one by one: a sum of few arrays is the quicker code."""


def cse(fn: Callable[..., T], *args: PyTree) -> T:
    """`fn(*args)`, each equation of the same operands evaluated once, those that nothing reads not at all.

    Rows of one array are split off together. Plain `jit`s are inlined. Equations that are not known to be pure stay, as
    often as they stand there. Those that make keys are not merged, each of which may be used but once.
    """
    jaxpr, shape = stage(fn, *args)
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    eqns = _needed(eqns, outvars)
    rows = _rows(eqns)
    done: dict[
        Hashable, tuple[list[Array], list[Array]]
    ] = {}  # what decides an equation's results -> its operands and results

    def visit(i, eqn, values):
        if i in rows:
            return [_jax.in_place_of(eqn, lambda: rows[i](values[0]))]
        if (identity := _identity(eqn, values)) is None:
            return plain(i, eqn, values)
        if identity not in done:  # the operands are kept, so that no other object has their `id`
            done[identity] = values, plain(i, eqn, values)
        return done[identity][1]

    env = dict(zip([*constvars, *invars], [*consts, *jax.tree.leaves(args)], strict=True))
    outs = read(evaluate(eqns, env, visit), outvars)
    return jax.tree.unflatten(jax.tree.structure(shape), outs)


def _needed(eqns: Sequence[Eqn], outvars: Sequence[Atom]) -> list[Eqn]:
    """The equations that make outputs, those that are not known to be pure, and what these read."""
    stay = {i for i, eqn in enumerate(eqns) if not is_pure(eqn)}
    cut = backward(eqns, [*outvars, *(v for i in stay for v in eqns[i].invars)])
    return [eqns[i] for i in sorted(cut.numbers | stay)]


class _Rows:
    """The rows of one array along an axis, made at once where the first of them is read."""

    def __init__(self, axis: int, size: int, starts: Sequence[int]):
        """Plans parts of the array: each row that is read, and what lies between."""
        cuts = sorted({0, size, *starts, *(start + 1 for start in starts)})
        self.axis, self.number = axis, {start: i for i, start in enumerate(cuts)}
        self.sizes = [after - before for before, after in itertools.pairwise(cuts)]
        self.parts: list[Array] = []

    def read(self, start: int, x: Array) -> Array:
        """The row that begins at `start`."""
        self.parts = self.parts or list(lax.split(x, self.sizes, axis=self.axis))
        return self.parts[self.number[start]]


def _rows(eqns: Sequence[Eqn]) -> dict[int, Callable[[Array], Array]]:
    """The slices of one row, where there are more than a few of an array: number -> (array -> row)."""
    found: dict[tuple[Atom, int, Hashable], dict[int, int]] = {}  # array, axis, context -> number -> start
    for i, eqn in enumerate(eqns):
        if (row := _row(eqn)) is not None:
            axis, start = row
            found.setdefault((eqn.invars[0], axis, _jax.context_of(eqn)), {})[i] = start
    out: dict[int, Callable[[Array], Array]] = {}
    for (array, axis, _), starts in found.items():
        if len(set(starts.values())) > _FEW:
            rows = _Rows(axis, array.aval.shape[axis], list(starts.values()))
            out |= {i: functools.partial(rows.read, start) for i, start in starts.items()}
    return out


def _row(eqn: Eqn) -> tuple[int, int] | None:
    """The axis and the place of the row that an equation takes; None where it is no such slice."""
    if eqn.primitive.name != "slice" or eqn.params["strides"] is not None or is_key(eqn.invars[0].aval):
        return None
    shape, starts, ends = eqn.invars[0].aval.shape, eqn.params["start_indices"], eqn.params["limit_indices"]
    cut = [a for a, size in enumerate(shape) if (starts[a], ends[a]) != (0, size)]
    return (cut[0], starts[cut[0]]) if len(cut) == 1 and ends[cut[0]] - starts[cut[0]] == 1 else None


def _identity(eqn: Eqn, values: Sequence[ArrayLike]) -> Hashable | None:
    """What decides the results of an equation; None where it is to be left alone, or cannot be compared."""
    if not is_pure(eqn) or any(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in eqn.outvars):
        return None
    params = tuple((k, _name(x) if isinstance(x, float) else x) for k, x in sorted(eqn.params.items()))
    avals = tuple(v.aval for v in (*eqn.invars, *eqn.outvars))
    identity = (eqn.primitive, params, avals, tuple(map(_name, values)), _jax.context_of(eqn))
    try:
        hash(identity)
    except TypeError:
        return None
    return identity


def _name(x: ArrayLike) -> Hashable:
    """What an operand is told by: a number by its bits, an array by being the same."""
    if isinstance(x, jax.Array) or np.ndim(x):
        return id(x)
    number = np.asarray(x)
    return number.dtype, number.tobytes()
