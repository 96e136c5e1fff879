"""Checks of arguments that many functions share."""

from __future__ import annotations

import operator
from typing import Any

from vipl._compat import Tracer
from vipl._errors import ProgramError, show_aval


def whole_number(n: Any, name: str, at: str, *, least: int = 1) -> int:
    """An argument that has to be an integer known when a program is staged: a Python, NumPy or JAX integer.

    Args:
      n: the argument.
      name: what it is called.
      at: where, for the message.
      least: the smallest that is allowed.

    Raises:
      ProgramError: it is something else, or too small.
    """
    dtype = getattr(n, "dtype", None)
    boolean = isinstance(n, bool) or getattr(dtype, "kind", "") == "b"
    try:
        number = None if boolean or getattr(n, "shape", ()) != () else operator.index(n)
    except TypeError:  # not an integer, or a traced one
        number = None
    if number is not None and number >= least:
        return number
    kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
    raise ProgramError(
        f"{name} is not {kind}.",
        at=at,
        got=f"a traced {show_aval(n)}" if isinstance(n, Tracer) else repr(n),
        expected=f"an integer that is known when the program is staged, at least {least}",
        mend=f"pass {name}={max(least, 5)}",
    )
