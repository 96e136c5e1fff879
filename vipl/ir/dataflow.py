"""Dataflow over the equations of a program: forwards, over values or over what is known of them, and backwards.

Invariant: with `visit` = `plain` the way forwards is JAX's own evaluation: same parameters, context and source line of
each equation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from vipl import _jax

Visit = Callable[[int, Any, list[Any]], Sequence[Any]]
"""`(number, equation, operands) -> results`: what one equation means."""

Constant = Callable[[Any], Any]
"""What is known of a constant or literal."""


def _itself(x: Any) -> Any:
    return x


def walk(jaxpr: Any, args: Sequence[Any], visit: Visit, constant: Constant = _itself) -> list[Any]:
    """Evaluates a jaxpr; `args` and results are values, or what is known of them."""
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    env = dict(zip([*constvars, *invars], [*map(constant, consts), *args], strict=True))
    return read(evaluate(eqns, env, visit, constant), outvars, constant)


def evaluate(eqns: Sequence[Any], env: dict[Any, Any], visit: Visit, constant: Constant = _itself) -> dict[Any, Any]:
    """The equation loop: extends an environment by the results of the equations."""
    env = dict(env)
    for i, eqn in enumerate(eqns):
        env.update(zip(eqn.outvars, visit(i, eqn, read(env, eqn.invars, constant)), strict=True))
    return env


def read(env: dict[Any, Any], variables: Sequence[Any], constant: Constant = _itself) -> list[Any]:
    """The values of variables and literals."""
    return [constant(v.val) if isinstance(v, _jax.Literal) else env[v] for v in variables]


def read_arrays(env: dict[Any, Any], variables: Sequence[Any]) -> list[Any]:
    """The values of variables and literals; a literal, which is a Python number, as an array."""
    values = zip(variables, read(env, variables), strict=True)
    return [jnp.asarray(x, jnp.result_type(v.aval)) if isinstance(v, _jax.Literal) else x for v, x in values]


def plain(_: int, eqn: Any, values: list[Any]) -> list[Any]:
    """Evaluates an equation as JAX does."""
    return _jax.rebind(eqn, values)


def follow_back(
    eqns: Sequence[Any], wanted: Iterable[Any], enter: Callable[[int, Any], bool] = lambda *_: True
) -> tuple[set[int], dict[Any, int | None]]:
    """The equations that make the wanted variables, and where the way back to them ends.

    Args:
      eqns: of a program.
      wanted: variables and literals.
      enter: (number, variable) -> whether to follow the variable through the equation that makes it.

    Returns:
      The numbers of the equations; and each variable at an end, with the number of the equation that makes it, if any.
    """
    made_by = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
    found: set[int] = set()
    ends: dict[Any, int | None] = {}
    left = list(wanted)
    while left:
        v = left.pop()
        i = None if isinstance(v, _jax.Literal) else made_by.get(v)
        if isinstance(v, _jax.Literal) or i in found:
            continue
        if i is not None and enter(i, v):
            found.add(i)
            left += eqns[i].invars
        else:
            ends[v] = i
    return found, ends
