"""The same values with less to do: no equation twice, and none that nothing reads.

XLA finds equations that occur twice, but only after JAX has differentiated both. The log density of a draw, say, is
evaluated by an objective and once more by the score of the site. Merged before, it is differentiated once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipl import _compat
from vipl.core._equations import plain, read
from vipl.core._interpret import stage


def simplified(fn: Callable, *args: Any) -> Any:
    """`fn(*args)`, each equation of the same operands evaluated once, those that nothing reads not at all.

    Equations with effects stay as they are, and so do those that make keys, each of which may be used but once.
    """
    jaxpr, shape = stage(fn, *args)
    constvars, consts, invars, eqns, outvars = _compat.parts(jaxpr)
    env = dict(zip([*constvars, *invars], [*consts, *jax.tree.leaves(args)], strict=True))
    first: dict[Any, Any] = {}  # variable -> the first variable with its value
    done: dict[Any, Any] = {}
    for eqn in _that_are_read(eqns, outvars):
        identity = _identity(eqn, first)
        if identity in done:
            first.update(zip(eqn.outvars, done[identity], strict=True))
            env.update(zip(eqn.outvars, read(env, done[identity]), strict=True))
            continue
        if identity is not None:
            done[identity] = eqn.outvars
        env.update(zip(eqn.outvars, plain(0, eqn, read(env, eqn.invars)), strict=True))
    return jax.tree.unflatten(jax.tree.structure(shape), read(env, outvars))


def _that_are_read(eqns: Sequence[Any], outvars: Sequence[Any]) -> list[Any]:
    needed = {v for v in outvars if not isinstance(v, _compat.Literal)}
    kept = []
    for eqn in reversed(eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, _compat.Literal))
            kept.append(eqn)
    return kept[::-1]


def _identity(eqn: Any, first: dict[Any, Any]) -> Any:
    """What decides the results of an equation; None where it is to be left alone, or cannot be compared."""
    if eqn.effects or any(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in eqn.outvars):
        return None
    operands = tuple((v.aval, repr(v.val)) if isinstance(v, _compat.Literal) else first.get(v, v) for v in eqn.invars)
    params = tuple((k, repr(x) if isinstance(x, float) else x) for k, x in sorted(eqn.params.items()))
    identity = (eqn.primitive, params, operands, tuple(v.aval for v in eqn.outvars), _compat.context_of(eqn))
    try:
        hash(identity)
    except TypeError:
        return None
    return identity
