"""Constants of a program: NumPy arrays are copied, so that a change in place of the user's changes no program.

JAX has one constant for each NumPy array, and returns it as long as a program that holds it lives, whatever the array
holds by then. Where it needs no conversion the constant is the user's memory itself. Invariant: no program that lives
on holds an array of the user's, or JAX's constant of one. Arrays without axes are left as they are: JAX writes them
into equations, beside numbers of its own.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from vipl import _jax
from vipl._jax import Eqn, Jaxpr
from vipl._types import Array

J = TypeVar("J", bound=Jaxpr)


def with_own_constants(jaxpr: J) -> J:
    """The same program with copies of the NumPy arrays in it and in its inner programs; one copy of each array."""
    return _copied(jaxpr, {})


def _copied(jaxpr: J, done: dict[int, tuple[object, Array | Jaxpr]]) -> J:
    """A program; `done`: by identity, what was copied, kept so that no other has its number, and its copy."""
    if id(jaxpr) in done:
        return done[id(jaxpr)][1]  # type: ignore[return-value]
    constvars, consts, _, eqns, outvars = _jax.parts(jaxpr)
    own = [_constant(x, done) for x in consts]
    inside = [_equation(eqn, done) for eqn in eqns]
    is_same = all(x is y for x, y in zip([*own, *inside], [*consts, *eqns], strict=True))
    new = jaxpr if is_same else _jax.with_parts(jaxpr, constvars, own, inside, outvars)
    done[id(jaxpr)] = jaxpr, new
    return new


def _constant(x: Array, done: dict[int, tuple[object, Array | Jaxpr]]) -> Array:
    if not isinstance(x, np.ndarray):
        return x
    if id(x) not in done:
        done[id(x)] = x, x.copy()
    return done[id(x)][1]  # type: ignore[return-value]


def _equation(eqn: Eqn, done: dict[int, tuple[object, Array | Jaxpr]]) -> Eqn:
    bodies = _jax.bodies(eqn)
    if all(_copied(body, done) is body for body in bodies):
        return eqn
    params = _jax.map_bodies(eqn, lambda body: _copied(body, done))
    return _jax.with_ends(eqn, eqn.invars, eqn.outvars, params)
