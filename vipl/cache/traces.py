"""What traces are told apart by: the shapes of their arguments, and what their equations do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np

from vipl import _jax
from vipl._jax import Atom, Jaxpr, Primitive, Var
from vipl._types import PyTree
from vipl.cache.fingerprint import reader_token
from vipl.cache.reading import Same
from vipl.ir.batching import jaxprs_inside


def avals_of(args: Sequence[PyTree]) -> Hashable:
    """The structure, shapes and dtypes of arguments, and the mode of JAX's numbers."""
    leaves, structure = jax.tree.flatten(args)
    return structure, tuple(_jax.typeof(x) for x in leaves), _jax.numeric_mode()


def has_equation(jaxpr: Jaxpr, wanted: Callable[[Primitive], bool]) -> bool:
    """Whether a program has an equation of a primitive that is wanted."""
    for eqn in _jax.parts(jaxpr).eqns:
        if wanted(eqn.primitive):
            return True
        if any(has_equation(j, wanted) for x in eqn.params.values() for j in jaxprs_inside(x, set())):
            return True
    return False


def token_of(jaxpr: Jaxpr) -> tuple[Hashable, ...]:
    """Equal for jaxprs that do the same."""
    read_value, atoms = reader_token()

    def of(jaxpr: Jaxpr) -> None:
        numbers: dict[Var, int] = {}
        constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)

        def variable(v: Atom) -> None:
            if isinstance(v, _jax.Literal):
                value = np.asarray(v.val)
                atoms.append((str(v.aval), value.tobytes()))
            else:
                atoms.append(numbers.setdefault(v, len(numbers)))

        for v, c in zip(constvars, consts, strict=True):
            variable(v)
            read_value(c)
        for v in invars:
            variable(v)
            atoms.append((str(v.aval), getattr(v.aval, "weak_type", None)))
        for eqn in eqns:
            atoms.append(Same(eqn.primitive))
            for v in eqn.invars:
                variable(v)
            atoms.append("->")
            for v in eqn.outvars:
                variable(v)
            for name, x in sorted(eqn.params.items()):
                atoms.append(name)
                parameter(x)
        for v in outvars:
            variable(v)

    def parameter(x: object) -> None:
        if _jax.is_jaxpr(x):
            of(x)
        elif isinstance(x, (tuple, list)):
            atoms.append(len(x))
            for y in x:
                parameter(y)
        else:
            read_value(x)

    of(jaxpr)
    return tuple(atoms)
