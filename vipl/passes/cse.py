"""The same values with less to do: no equation twice, and none that nothing reads.

XLA finds equations that occur twice, but only after JAX has differentiated both. The log density of a draw, say, is
evaluated by an objective and once more by the score of the site. Merged before, it is differentiated once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vipl import _jax
from vipl._jax import Atom, Eqn
from vipl._types import Array, ArrayLike, PyTree
from vipl.ir.dataflow import backward, evaluate, plain, read
from vipl.ir.purity import is_pure
from vipl.ir.stage import stage

T = TypeVar("T")


def cse(fn: Callable[..., T], *args: PyTree) -> T:
    """`fn(*args)`, each equation of the same operands evaluated once, those that nothing reads not at all.

    Plain `jit`s are inlined. Equations that are not known to be pure stay, as often as they stand there. Those that
    make keys are not merged, each of which may be used but once.
    """
    jaxpr, shape = stage(fn, *args)
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    done: dict[
        Hashable, tuple[list[Array], list[Array]]
    ] = {}  # what decides an equation's results -> its operands and results

    def visit(i, eqn, values):
        if (identity := _identity(eqn, values)) is None:
            return plain(i, eqn, values)
        if identity not in done:  # the operands are kept, so that no other object has their `id`
            done[identity] = values, plain(i, eqn, values)
        return done[identity][1]

    env = dict(zip([*constvars, *invars], [*consts, *jax.tree.leaves(args)], strict=True))
    outs = read(evaluate(_needed(eqns, outvars), env, visit), outvars)
    return jax.tree.unflatten(jax.tree.structure(shape), outs)


def _needed(eqns: Sequence[Eqn], outvars: Sequence[Atom]) -> list[Eqn]:
    """The equations that make outputs, those that are not known to be pure, and what these read."""
    stay = {i for i, eqn in enumerate(eqns) if not is_pure(eqn)}
    cut = backward(eqns, [*outvars, *(v for i in stay for v in eqns[i].invars)])
    return [eqns[i] for i in sorted(cut.numbers | stay)]


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
