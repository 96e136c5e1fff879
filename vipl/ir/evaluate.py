"""The equation loop: evaluation of a jaxpr, with a choice of what one equation means.

Invariant: with `visit` = `plain` this is JAX's own evaluation: same parameters, context and source line of each
equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from vipl import _jax


def walk(jaxpr: Any, args: Sequence[Any], visit: Callable[[int, Any, list[Any]], Sequence[Any]]) -> list[Any]:
    """Evaluates a jaxpr; `visit(number, equation, operands)` evaluates one equation."""
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    env = dict(zip([*constvars, *invars], [*consts, *args], strict=True))
    return read(evaluate(eqns, env, visit), outvars)


def evaluate(
    eqns: Sequence[Any], env: dict[Any, Any], visit: Callable[[int, Any, list[Any]], Sequence[Any]]
) -> dict[Any, Any]:
    """The equation loop: extends an environment by the results of the equations."""
    env = dict(env)
    for i, eqn in enumerate(eqns):
        env.update(zip(eqn.outvars, visit(i, eqn, read(env, eqn.invars)), strict=True))
    return env


def read(env: dict[Any, Any], variables: Sequence[Any]) -> list[Any]:
    """The values of variables and literals."""
    return [v.val if isinstance(v, _jax.Literal) else env[v] for v in variables]


def read_arrays(env: dict[Any, Any], variables: Sequence[Any]) -> list[Any]:
    """The values of variables and literals; a literal, which is a Python number, as an array."""
    values = zip(variables, read(env, variables), strict=True)
    return [jnp.asarray(x, jnp.result_type(v.aval)) if isinstance(v, _jax.Literal) else x for v, x in values]


def plain(_: int, eqn: Any, values: list[Any]) -> list[Any]:
    """Evaluates an equation as JAX does."""
    return _jax.rebind(eqn, values)
