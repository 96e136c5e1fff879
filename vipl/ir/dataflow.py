"""Dataflow over the equations of a program: forwards, over values or over what is known of them, and backwards.

Invariant: with `visit` = `plain` the way forwards is JAX's own evaluation: same parameters, context and source line of
each equation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp

from vipl import _jax
from vipl._jax import Atom, Eqn, Jaxpr, Literal, Var
from vipl._types import Array

T = TypeVar("T")

Visit = Callable[[int, Eqn, list[T]], Sequence[T]]
"""`(number, equation, operands) -> results`: what one equation means."""

Constant = Callable[[Any], T]
"""What is known of a constant or literal."""


def _itself(x: Any) -> Any:
    return x


def walk(jaxpr: Jaxpr, args: Sequence[T], visit: Visit[T], constant: Constant[T] = _itself) -> list[T]:
    """Evaluates a jaxpr; `args` and results are values, or what is known of them."""
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    env = dict(zip([*constvars, *invars], [*map(constant, consts), *args], strict=True))
    return read(evaluate(eqns, env, visit, constant), outvars, constant)


def evaluate(
    eqns: Sequence[Eqn], env: Mapping[Var, T], visit: Visit[T], constant: Constant[T] = _itself
) -> dict[Var, T]:
    """The equation loop: extends an environment by the results of the equations."""
    env = dict(env)
    for i, eqn in enumerate(eqns):
        env.update(zip(eqn.outvars, visit(i, eqn, read(env, eqn.invars, constant)), strict=True))
    return env


def read(env: Mapping[Var, T], variables: Sequence[Atom], constant: Constant[T] = _itself) -> list[T]:
    """The values of variables and literals."""
    return [constant(v.val) if isinstance(v, Literal) else env[v] for v in variables]


def read_arrays(env: Mapping[Var, Array], variables: Sequence[Atom]) -> list[Array]:
    """The values of variables and literals; a literal, which is a Python number, as an array."""
    values = zip(variables, read(env, variables), strict=True)
    return [jnp.asarray(x, jnp.result_type(v.aval)) if isinstance(v, Literal) else x for v, x in values]


def plain(_: int, eqn: Eqn, values: list[Array]) -> list[Array]:
    """Evaluates an equation as JAX does."""
    return _jax.rebind(eqn, values)


def maker(eqns: Sequence[Eqn]) -> Callable[[Atom], Eqn | None]:
    """Variable -> the equation that makes it; None for literals, inputs and constants."""
    made_by = {v: eqn for eqn in eqns for v in eqn.outvars}
    return lambda v: None if isinstance(v, Literal) else made_by.get(v)


class Cut(NamedTuple):
    """A part of a program: the equations behind some variables, as far back as they are followed.

    Attributes:
      numbers: those of the equations.
      ends: each variable at which the way back ends, with the number of the equation that makes it, if any.
    """

    numbers: set[int]
    ends: dict[Var, int | None]

    def eqns(self, program: Sequence[Eqn]) -> list[Eqn]:
        """The equations, in the order of the program that they are a part of."""
        return [program[i] for i in sorted(self.numbers)]


def backward(eqns: Sequence[Eqn], wanted: Iterable[Atom], enter: Callable[[int, Var], bool] = lambda i, v: True) -> Cut:
    """The part of a program that makes the wanted variables.

    Args:
      eqns: of the program.
      wanted: variables and literals.
      enter: (number, variable) -> whether to follow the variable through the equation that makes it.
    """
    made_by = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
    cut = Cut(set(), {})
    left = list(wanted)
    while left:
        v = left.pop()
        if isinstance(v, Literal) or (i := made_by.get(v)) in cut.numbers:
            continue
        if i is not None and enter(i, v):
            cut.numbers.add(i)
            left += eqns[i].invars
        else:
            cut.ends[v] = i
    return cut
