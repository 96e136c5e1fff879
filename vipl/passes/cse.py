"""The same values with less to do: no equation twice, and none that nothing reads.

XLA finds equations that occur twice, but only after JAX has differentiated both. The log density of a draw, say, is
evaluated by an objective and once more by the score of the site. Merged before, it is differentiated once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl import _jax
from vipl.ir.dataflow import plain, read
from vipl.ir.purity import is_pure
from vipl.ir.stage import stage


def cse(fn: Callable, *args: Any) -> Any:
    """`fn(*args)`, each equation of the same operands evaluated once, those that nothing reads not at all.

    What is in a `jit` counts as if it stood outside. Equations that are not known to be pure stay, as often as they
    stand there. Those that make keys are not merged, each of which may be used but once.
    """
    jaxpr, shape = stage(fn, *args)
    return jax.tree.unflatten(jax.tree.structure(shape), _evaluated(jaxpr, jax.tree.leaves(args), {}))


def _evaluated(jaxpr: Any, args: Sequence[Any], done: dict[Any, Any]) -> list[Any]:
    """The outputs; `done`: what decides an equation's results -> its operands and results."""
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    env = dict(zip([*constvars, *invars], [*consts, *args], strict=True))
    for eqn in _that_are_read(eqns, outvars):
        values = read(env, eqn.invars)
        if _jax.is_plain_jit(eqn):
            outs = _evaluated(eqn.params["jaxpr"], values, done)
        elif (identity := _identity(eqn, values)) is None:
            outs = plain(0, eqn, values)
        else:
            if identity not in done:  # the operands are kept, so that no other object has their `id`
                done[identity] = values, plain(0, eqn, values)
            _, outs = done[identity]
        env.update(zip(eqn.outvars, outs, strict=True))
    return read(env, outvars)


def _that_are_read(eqns: Sequence[Any], outvars: Sequence[Any]) -> list[Any]:
    needed = {v for v in outvars if not isinstance(v, _jax.Literal)}
    kept = []
    for eqn in reversed(eqns):
        if not is_pure(eqn) or not needed.isdisjoint(eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, _jax.Literal))
            kept.append(eqn)
    return kept[::-1]


def _identity(eqn: Any, values: Sequence[Any]) -> Any:
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


def _name(x: Any) -> Any:
    """What an operand is told by: a number by its bits, an array by being the same."""
    if isinstance(x, jax.Array) or np.ndim(x):
        return id(x)
    number = np.asarray(x)
    return number.dtype, number.tobytes()
