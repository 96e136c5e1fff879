"""Checks of arguments that many functions share."""

from __future__ import annotations

import operator
from typing import SupportsIndex, TypeGuard

import jax

from vipl import _jax
from vipl._jax import Tracer
from vipl._types import PyTree
from vipl.errors import ProgramError, shortened, show_aval


def is_integer(x: object) -> TypeGuard[SupportsIndex]:
    """Says whether something is one integer that is known: of Python, NumPy or JAX; not a boolean."""
    if isinstance(x, bool) or getattr(getattr(x, "dtype", None), "kind", "") == "b" or getattr(x, "shape", ()) != ():
        return False
    try:
        operator.index(x)  # type: ignore[arg-type]
    except TypeError:  # something else, or traced
        return False
    return True


def whole_number(n: object, name: str, at: str, *, least: int = 1) -> int:
    """An argument that has to be an integer known when a program is staged: a Python, NumPy or JAX integer.

    Args:
      n: the argument.
      name: what it is called.
      at: where, for the message.
      least: the smallest that is allowed.

    Raises:
      ProgramError: it is something else, or too small.
    """
    number = operator.index(n) if is_integer(n) else None
    if number is not None and number >= least:
        return number
    kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
    error = ProgramError(
        f"{name} is not {kind}.",
        at=at,
        got=f"a traced {show_aval(n)}" if isinstance(n, Tracer) else shortened(n),
        expected=f"an integer that is known when the program is staged, at least {least}",
        fix=f"pass {name}={max(least, 5) if number is not None or not isinstance(n, float) else max(least, round(n))}",
    )
    error.needs_number = isinstance(n, Tracer)
    raise error


def is_traced(tree: PyTree) -> bool:
    """Whether a computation with these arrays is part of a transformation that is going on."""
    return _jax.staging() or any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def check_known(tree: PyTree, at: str, fix: str) -> None:
    """Raises where Python has to look at numbers, and is inside a transformation, where there are none.

    Args:
      tree: the numbers.
      at: which function looks at them.
      fix: what to write instead.
    """
    if is_traced(tree):
        traced = next((show_aval(x) for x in jax.tree.leaves(tree) if isinstance(x, Tracer)), "")
        raise ProgramError(
            f"{at} is called inside a transformation of JAX, and looks at numbers, which are not known there.",
            at=at,
            got=f"a call inside jax.jit, jax.vmap or jax.grad{traced and f', with a traced {traced}'}",
            expected="a call from ordinary Python",
            fix=fix,
        )
