"""What `gen` and `expectation` may decorate, and what an estimator may take for a function."""

from __future__ import annotations

import inspect
from typing import Any

import numpyro.distributions as dist

from vipl.errors import EstimatorError, ProgramError, show_aval
from vipl.ir.frames import user_frame


def check_function(fn: Any, who: str) -> None:
    """Raises where something is not a function that can be staged."""
    name = getattr(fn, "__name__", None) or type(fn).__name__
    got, fix = None, "give it a function that calls vipl.sample"
    if isinstance(fn, (classmethod, property)):
        got, fix = f"a {type(fn).__name__}", f"put {who} below @{type(fn).__name__}, next to the function"
    elif hasattr(type(fn), "simulate"):  # a program, or another source
        got, fix = f"{fn.name}(...), already applied", "give it a function; a program needs none of it"
    elif hasattr(type(fn), "with_estimators") and not hasattr(type(fn), "estimate"):
        got, fix = f"the generative function {name}", f"use {name} as it is: {name}(...).simulate(key)"
    elif isinstance(fn, dist.Distribution):
        got = f"the distribution {name}"
    elif isinstance(fn, type):
        got, fix = f"the class {name}", "give it a function, or put it on a method of the class"
    elif not callable(fn):
        got = show_aval(fn)
    elif inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        got, fix = f"the async function {name}", "write it with def"
    elif inspect.isgeneratorfunction(fn):
        got, fix = f"the generator {name}", "return values instead of yielding them; a loop is jax.lax.scan"
    if got is not None:
        raise ProgramError(
            f"{who} is given something that cannot be staged.",
            at=user_frame(),
            got=got,
            expected="a plain function",
            fix=fix,
        )


def check_callable(fn: Any, who: str, what: str, example: str) -> None:
    """Raises where a field of an estimator is not a function."""
    if not callable(fn):
        raise EstimatorError(
            f"{what} of {who} is not a function.",
            at="",
            got=show_aval(fn),
            expected="a function",
            fix=f"pass {who}({example})",
        )
