"""What `gen` and `expectation` may decorate."""

from __future__ import annotations

import inspect
from typing import Any

from vipl._errors import ProgramError, show_aval
from vipl.core._site import user_frame
from vipl.gen._source import Source


def check_function(fn: Any, who: str) -> None:
    """Raises where something is not a function that can be staged."""
    name = getattr(fn, "__name__", None) or type(fn).__name__
    got, mend = None, "decorate a function that calls vipl.sample"
    if isinstance(fn, (classmethod, property)):
        got, mend = f"a {type(fn).__name__}", f"put {who} below @{type(fn).__name__}, next to the function"
    elif hasattr(fn, "with_estimators") and not hasattr(fn, "estimate"):
        got, mend = f"the generative function {name}", f"use {name} as it is, or take one decorator away"
    elif isinstance(fn, Source):
        got, mend = f"{fn.name}(...), already applied", "decorate a function; a program needs no decorator"
    elif isinstance(fn, type):
        got, mend = f"the class {name}", "decorate a function, or a method of the class"
    elif not callable(fn):
        got = show_aval(fn)
    elif inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        got, mend = f"the async function {name}", "write it with def"
    elif inspect.isgeneratorfunction(fn):
        got, mend = f"the generator {name}", "return values instead of yielding them; a loop is jax.lax.scan"
    if got is not None:
        raise ProgramError(
            f"{who} decorates something that cannot be staged.",
            at=user_frame(),
            got=got,
            expected="a plain function",
            mend=mend,
        )
