"""Values that raise instead of being wrong: when a derivative is taken, or where a condition holds at run time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import jax

from vipl import _jax
from vipl._types import Array, Bool, PyTree

At = TypeVar("At", bound=Hashable)

_guard_p = _jax.define_guard_primitive("vipl_guard", lambda error, at: error(at))

_alarm_p = _jax.define_alarm_primitive("vipl_alarm", lambda error, at: error(at))

ALARM = _alarm_p

GUARDS = (_guard_p, _alarm_p)
"""Primitives whose value is their first operand; the others decide whether an error is raised."""


def alarm(value: Array, flag: Bool[Array, ""], error: Callable[[str], Exception], at: str) -> Array:
    """The value; raises `error(at)` where the flag is true.

    In compiled code the host raises it when the program runs, and JAX hands it on as a `JaxRuntimeError` with the
    message in it. Under `vmap` a true flag in one lane raises, also where a mapped `cond` would have left it out.

    Args:
      value: an array, which derivatives pass through.
      flag: bool[].
      error: makes the exception.
      at: its argument.
    """
    return _alarm_p.bind(value, flag, error=error, at=at)


def undifferentiable(error: Callable[[At], Exception], at: At) -> Callable[[Array, PyTree], Array]:
    """`(value, parameters) -> value`, whose derivative in value or parameters raises `error(at)`.

    It raises when the derivative is traced, and only if one of them is differentiated.

    Args:
      error: makes the exception.
      at: its argument, hashable.
    """

    def guarded(value: Array, parameters: PyTree) -> Array:
        return _guard_p.bind(value, *jax.tree.leaves(parameters), error=error, at=at)

    return guarded
