"""Constants of a program: NumPy arrays are copied, so that a change in place of the user's changes no program.

JAX has one constant for each NumPy array, and returns it as long as a program that holds it lives, whatever the array
holds by then. Where it needs no conversion the constant is the user's memory itself. Invariant: no program that lives
on holds an array of the user's, or JAX's constant of one.
"""

from __future__ import annotations

import itertools
from typing import TypeVar

import numpy as np

from vipl import _jax
from vipl._jax import Atom, Eqn, Jaxpr
from vipl._types import Array

J = TypeVar("J", bound=Jaxpr)


def with_own_constants(jaxpr: J) -> J:
    """The same program with copies of the NumPy arrays in it, also in its inner programs."""
    constvars, consts, _, eqns, outvars = _jax.parts(jaxpr)
    own = list(map(_copied, consts)), list(map(_of_equation, eqns)), list(map(_of_variable, outvars))
    pairs = zip(itertools.chain(*own), itertools.chain(consts, eqns, outvars), strict=True)
    return jaxpr if all(x is y for x, y in pairs) else _jax.with_parts(jaxpr, constvars, *own)


def _copied(x: Array) -> Array:
    return x.copy() if isinstance(x, np.ndarray) else x


def _of_variable(v: Atom) -> Atom:
    return _jax.with_value(v, v.val.copy()) if isinstance(v, _jax.Literal) and isinstance(v.val, np.ndarray) else v


def _of_equation(eqn: Eqn) -> Eqn:
    operands = list(map(_of_variable, eqn.invars))
    own = {id(body): with_own_constants(body) for body in _jax.bodies(eqn)}
    is_same = all(id(body) == i for i, body in own.items())
    if is_same and all(x is y for x, y in zip(operands, eqn.invars, strict=True)):
        return eqn
    params = eqn.params if is_same else _jax.map_bodies(eqn, lambda body: own[id(body)])
    return _jax.with_ends(eqn, operands, eqn.outvars, params)
